//! What the start of a program reads, asked for before it starts: the image's server makes it ready while the container is still being
//! put together.
//!
//! A program's pages are asked for one fault after the other otherwise, and each question takes longer than its answer. Nothing here
//! is needed: what cannot be found or read is left to the start itself, which says so.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::container::Container;
use super::init::candidates;
use super::inside;
use super::root::regular;

/// As much of one file is asked for: what starts at once is not larger, and of what is, most is not needed.
const MOST: i64 = 2 << 20;
/// As much the kernel takes at once (`VM_READAHEAD_PAGES`).
const PIECE: i64 = 128 << 10;
/// The library that all programs of its loader's system have.
const LIBC: &str = "libc.so.6";

/// Files that are on their way.
pub struct Ahead(Option<File>);

impl Ahead {
    /// Asks for the program of `container`. No mount of the container is there yet: one may hide it, and then nothing is gained.
    pub fn program(image: BorrowedFd<'_>, container: &Container) -> Ahead {
        Ahead(candidates(container).find_map(|path| ask(image, Path::new(&path))))
    }

    /// Asks for the program's loader, which its beginning names, and the library beside it.
    pub fn loader(self, image: BorrowedFd<'_>) {
        let Some(program) = self.0 else { return };
        let mut head = vec![0; 4096];
        let Ok(length) = program.read_at(&mut head, 0) else { return };
        let Some(loader) = interpreter(&head[..length]).map(Path::new) else {
            return;
        };
        if ask(image, loader).is_some()
            && let Ok(found) = inside::find(image, loader)
        {
            ask(image, &found.sight.existing.with_file_name(LIBC));
        }
    }
}

/// Asks for the beginning of a regular file of the image.
fn ask(image: BorrowedFd<'_>, path: &Path) -> Option<File> {
    let file = regular(image, path)?;
    let size = i64::try_from(file.metadata().ok()?.len()).ok()?.min(MOST);
    for offset in (0..size).step_by(PIECE as usize) {
        posix_fadvise(
            file.as_fd(),
            offset,
            PIECE.min(size - offset),
            PosixFadviseAdvice::POSIX_FADV_WILLNEED,
        )
        .ok()?;
    }
    Some(file)
}

/// The path in the `PT_INTERP` of a 64-bit little-endian ELF program (elf(5)), or in the first line of a script (execve(2)).
fn interpreter(head: &[u8]) -> Option<&str> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte))).ok()
    };
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next()?;
        return std::str::from_utf8(line).ok()?.split_ascii_whitespace().next();
    }
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    let entries = (0..count).map_while(|index| table.checked_add(index.checked_mul(size)?));
    let entry = entries
        .take_while(|&entry| entry < head.len())
        .find(|&entry| number(entry, 4) == Some(PT_INTERP as usize))?;
    let (from, length) = (number(entry.checked_add(8)?, 8)?, number(entry.checked_add(32)?, 8)?);
    let path = head.get(from..from.checked_add(length)?)?;
    std::str::from_utf8(path.strip_suffix(b"\0")?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A program with one entry in its table of segments.
    fn elf(kind: u8, path: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 64 + 56];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (head[0x20], head[0x36], head[0x38]) = (64, 56, 1);
        (head[64], head[64 + 8], head[64 + 32]) = (kind, 120, path.len() as u8);
        head.extend_from_slice(path);
        head
    }

    #[test]
    fn who_reads_a_program() {
        assert_eq!(interpreter(&elf(3, b"/lib64/ld.so\0")), Some("/lib64/ld.so"));
        assert_eq!(interpreter(&elf(1, b"/lib64/ld.so\0")), None, "it is linked statically");
        assert_eq!(interpreter(&elf(3, b"/lib64/ld.so")), None, "its end is missing");
        assert_eq!(interpreter(b"#! /usr/bin/env python3\nprint()\n"), Some("/usr/bin/env"));
        assert_eq!(interpreter(b"#!"), None);
        assert_eq!(interpreter(b"echo"), None);
    }

    #[test]
    fn the_host_s_own_shell_names_its_loader() {
        let shell = std::fs::read("/bin/sh").unwrap();
        let loader = interpreter(&shell[..shell.len().min(4096)]);
        assert!(loader.is_none_or(|loader| Path::new(loader).exists()), "{loader:?}");
    }

    proptest! {
        #[test]
        fn any_beginning_is_read_or_left(change in prop::collection::vec((0_usize..140, any::<u8>()), 0..20)) {
            let mut head = elf(3, b"/lib64/ld.so\0");
            for (at, byte) in change {
                if let Some(place) = head.get_mut(at) {
                    *place = byte;
                }
            }
            interpreter(&head);
        }
    }
}
