//! What a server was asked for, in the order of asking, in memory that outlives it.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::squashfs::InodeRef;

/// What comes later is the program's work, and not its start.
const WHILE: Duration = Duration::from_secs(15);
/// As many questions are kept.
const MOST: u64 = 1 << 16;

/// The server's end: questions go in. One that cannot be kept is not missed.
pub struct Trace {
    file: File,
    began: Instant,
    kept: AtomicU64,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// Of this name in this folder, which `inode` has, or nothing.
    Name {
        folder: InodeRef,
        name: &'a [u8],
        inode: Option<InodeRef>,
    },
    /// Of all names in a folder.
    Names(InodeRef),
    /// Of what a link says.
    Link(InodeRef),
    /// Of bytes of a file. The kernel asks for whole pages, past the end too.
    Bytes { inode: InodeRef, offset: u64, length: u64 },
}

impl Trace {
    /// With the file that the questions lie in.
    pub fn new() -> nix::Result<(Trace, File)> {
        let file = File::from(memfd_create(c"trace", MFdFlags::MFD_CLOEXEC)?);
        let own = file.try_clone().map_err(|_| nix::errno::Errno::EMFILE)?;
        let trace = Trace {
            file: own,
            began: Instant::now(),
            kept: AtomicU64::new(0),
        };
        Ok((trace, file))
    }

    pub fn note(&self, question: Question<'_>) {
        let worth = self.began.elapsed() < WHILE && self.kept.load(Ordering::Relaxed) < MOST;
        // Each in one piece: threads write side by side.
        if worth && (&self.file).write_all(&encoded(question)).is_ok() {
            self.kept.fetch_add(1, Ordering::Relaxed);
        }
    }
}

const NAME: u8 = 1;
const NO_NAME: u8 = 2;
const NAMES: u8 = 3;
const BYTES: u8 = 4;
const LINK: u8 = 5;
/// What kind it is, three numbers, the length of a name.
const HEAD: usize = 1 + 3 * 8 + 1;

fn encoded(question: Question<'_>) -> Vec<u8> {
    let (kind, numbers, name) = match question {
        Question::Name { folder, name, inode: None } => (NO_NAME, [folder.0, 0, 0], name),
        Question::Name {
            folder,
            name,
            inode: Some(inode),
        } => (NAME, [folder.0, inode.0, 0], name),
        Question::Names(folder) => (NAMES, [folder.0, 0, 0], &[][..]),
        Question::Link(link) => (LINK, [link.0, 0, 0], &[][..]),
        Question::Bytes { inode, offset, length } => (BYTES, [inode.0, offset, length], &[][..]),
    };
    // The kernel's names have at most 255 bytes.
    let name = &name[..name.len().min(255)];
    let mut bytes = Vec::with_capacity(HEAD + name.len());
    bytes.push(kind);
    bytes.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    bytes
}

/// The questions in the bytes of a trace, up to the first that is not whole.
pub fn questions(mut bytes: &[u8]) -> impl Iterator<Item = Question<'_>> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let (name, rest) = rest.split_at_checked(head[HEAD - 1].into())?;
        bytes = rest;
        let number = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| head[1 + at * 8 + byte]));
        Some(match head[0] {
            kind @ (NAME | NO_NAME) => Question::Name {
                folder: InodeRef(number(0)),
                inode: (kind == NAME).then(|| InodeRef(number(1))),
                name,
            },
            NAMES => Question::Names(InodeRef(number(0))),
            LINK => Question::Link(InodeRef(number(0))),
            BYTES => Question::Bytes {
                inode: InodeRef(number(0)),
                offset: number(1),
                length: number(2),
            },
            _ => return None,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let all = [
            Question::Name {
                folder: InodeRef(7),
                name: b"lib\xff",
                inode: Some(InodeRef(1 << 40)),
            },
            Question::Name {
                folder: InodeRef(7),
                name: b"none",
                inode: None,
            },
            Question::Names(InodeRef(9)),
            Question::Link(InodeRef(11)),
            Question::Bytes {
                inode: InodeRef(3),
                offset: 1 << 33,
                length: 4096,
            },
        ];
        let (trace, file) = Trace::new().unwrap();
        all.into_iter().for_each(|question| trace.note(question));
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(questions(&bytes).collect::<Vec<_>>(), all);
        // The last one is cut off, where its server was killed.
        assert_eq!(questions(&bytes[..bytes.len() - 1]).count(), 4);
        assert_eq!(questions(b"\x09zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz").count(), 0);
    }
}
