//! Requests and replies as the kernel lays them out (`include/uapi/linux/fuse.h`), in the host's byte order.

use std::time::Duration;

/// The version of the protocol that is spoken, 7.x; the kernel's own where that is lower.
pub const MINOR: u32 = 31;
/// Linux 4.18, the first that lets ordinary users mount in user namespaces.
pub const OLDEST_MINOR: u32 = 26;
/// Nothing is ever written to the server that is longer: requests are names and numbers.
pub const REQUEST_MAX: usize = 64 << 10;
/// The root's number is the protocol's.
pub const ROOT: u64 = 1;
/// How long the kernel may believe names and attributes.
pub const FOREVER: Duration = Duration::from_secs(1 << 30);

/// What is asked.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const READLINK: u32 = 5;
    pub const READ: u32 = 15;
    pub const STATFS: u32 = 17;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const INIT: u32 = 26;
    pub const READDIR: u32 = 28;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
    pub const READDIRPLUS: u32 = 44;
}

/// Features agreed upon by INIT.
pub mod feature {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    pub const ALL: u32 = ASYNC_READ
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | NO_OPEN_SUPPORT
        | PARALLEL_DIROPS
        | MAX_PAGES
        | CACHE_SYMLINKS
        | NO_OPENDIR_SUPPORT;
}

/// A request.
#[derive(Debug, PartialEq)]
pub struct Request<'a> {
    pub opcode: u32,
    /// To be repeated in the reply.
    pub unique: u64,
    pub node: u64,
    pub body: &'a [u8],
}

const HEADER: usize = 40;

impl<'a> Request<'a> {
    /// `None` for what is no request.
    pub fn parse(bytes: &'a [u8]) -> Option<Request<'a>> {
        let body = bytes.get(HEADER..)?;
        Some(Request {
            opcode: u32_at(bytes, 4)?,
            unique: u64_at(bytes, 8)?,
            node: u64_at(bytes, 16)?,
            body,
        })
    }

    /// The NUL-terminated name that begins at `from` of the body.
    pub fn name(&self, from: usize) -> Option<&'a [u8]> {
        let rest = self.body.get(from..)?;
        rest.split(|&byte| byte == 0).next()
    }

    pub fn u32(&self, at: usize) -> Option<u32> {
        u32_at(self.body, at)
    }

    pub fn u64(&self, at: usize) -> Option<u64> {
        u64_at(self.body, at)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_apart_and_pieces_of_them_refused() {
        let mut bytes = vec![0; HEADER];
        bytes[4..8].copy_from_slice(&opcode::LOOKUP.to_ne_bytes());
        bytes[8..16].copy_from_slice(&7_u64.to_ne_bytes());
        bytes[16..24].copy_from_slice(&ROOT.to_ne_bytes());
        bytes.extend(b"name\0");
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.opcode, request.unique, request.node), (opcode::LOOKUP, 7, ROOT));
        assert_eq!(request.name(0), Some(&b"name"[..]));
        assert_eq!((request.name(9), request.u32(2), request.u64(0)), (None, None, None));
        assert_eq!(Request::parse(&bytes[..HEADER - 1]), None);
    }
}
