//! The part of a file in which the file system lies, read at positions.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::SquashfsError;

pub(super) struct Source {
    file: File,
    /// Where the file system begins in the file.
    base: u64,
    /// Bytes of the file system that are there.
    pub(super) length: u64,
}

impl Source {
    pub(super) fn new(file: File, base: u64) -> Result<Source, SquashfsError> {
        let size = file.metadata().map_err(|source| SquashfsError::Read { at: 0, source })?.len();
        let length = size
            .checked_sub(base)
            .ok_or(SquashfsError::NotSquashfs("the file ends before it begins"))?;
        Ok(Source { file, base, length })
    }

    /// Fills `buffer` with the bytes from `at` on.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), SquashfsError> {
        self.check(at, buffer.len() as u64)?;
        self.file
            .read_exact_at(buffer, self.base + at)
            .map_err(|source| match source.kind() {
                // The file was cut meanwhile.
                io::ErrorKind::UnexpectedEof => SquashfsError::damaged("its end is missing", at),
                _ => SquashfsError::Read { at, source },
            })
    }

    /// The `length` bytes from `at` on. Nothing is allocated for bytes that are not there.
    pub(super) fn bytes(&self, at: u64, length: usize) -> Result<Vec<u8>, SquashfsError> {
        self.check(at, length as u64)?;
        let mut bytes = vec![0; length];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u64(&self, at: u64) -> Result<u64, SquashfsError> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn check(&self, at: u64, length: u64) -> Result<(), SquashfsError> {
        match at.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(SquashfsError::damaged("something is said to lie behind its end,", at)),
        }
    }
}
