//! Answers, as the kernel wants them laid out.

use super::protocol::FOREVER;

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attributes {
    /// As `ls -i` shows it.
    pub number: u64,
    pub size: u64,
    /// Unix seconds.
    pub mtime: u64,
    /// Type and permissions.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    pub block_size: u32,
}

/// A reply's body being put together.
#[derive(Default)]
pub struct Body(Vec<u8>);

impl Body {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn u16(mut self, value: u16) -> Body {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Body {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Body {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Body {
        self.0.extend(bytes);
        self
    }

    /// `struct fuse_attr`.
    pub fn attributes(self, of: &Attributes) -> Body {
        self.u64(of.number)
            .u64(of.size)
            .u64(of.size.div_ceil(512))
            .u64(of.mtime)
            .u64(of.mtime)
            .u64(of.mtime)
            .u32(0)
            .u32(0)
            .u32(0)
            .u32(of.mode)
            .u32(of.links)
            .u32(of.uid)
            .u32(of.gid)
            .u32(of.device)
            .u32(of.block_size)
            .u32(0)
    }

    /// `struct fuse_entry_out` of the node with that number.
    pub fn entry(self, node: u64, of: &Attributes) -> Body {
        let valid = FOREVER.as_secs();
        self.u64(node).u64(0).u64(valid).u64(valid).u32(0).u32(0).attributes(of)
    }

    /// `struct fuse_entry_out` that says that there is no such name, for as long as the file system lives.
    pub fn no_entry(self) -> Body {
        let valid = FOREVER.as_secs();
        let body = self.u64(0).u64(0).u64(valid).u64(valid);
        body.raw(&[0; ENTRY - 32])
    }

    /// `struct fuse_dirent`: `next` is where the listing goes on behind it, `kind` the type bits of the mode, shifted.
    pub fn dirent(mut self, number: u64, next: u64, kind: u32, name: &[u8]) -> Body {
        self = self.u64(number).u64(next).u32(name.len() as u32).u32(kind).raw(name);
        let padded = self.0.len().next_multiple_of(8);
        self.0.resize(padded, 0);
        self
    }
}

/// Bytes of `struct fuse_entry_out`.
pub const ENTRY: usize = 128;

/// Bytes that a name takes in a listing.
pub fn dirent_length(name: &[u8]) -> usize {
    (24 + name.len()).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_lengths() {
        let attributes = Attributes {
            number: 1,
            size: 513,
            mtime: 0,
            mode: 0,
            links: 1,
            uid: 0,
            gid: 0,
            device: 0,
            block_size: 0,
        };
        assert_eq!(Body::default().attributes(&attributes).bytes().len(), 88);
        assert_eq!(Body::default().entry(2, &attributes).bytes().len(), ENTRY);
        assert_eq!(Body::default().no_entry().bytes().len(), ENTRY);
        for name in [&b"a"[..], b"12345678", b"123456789"] {
            assert_eq!(Body::default().dirent(1, 2, 8, name).bytes().len(), dirent_length(name));
        }
    }
}
