//! Which bytes of a download are there when several parts of it come at once: a small table beside the file, kept up to
//! date while it grows, so that a killed process loses nothing but what was on its way.
//!
//! The table: `dvparts1`, the file's length, the parts' length, and then how many bytes of each part are there; all
//! numbers 8 bytes, the lowest first. Each part grows from its beginning.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"dvparts1";
const HEAD: u64 = 24;
/// No table has more parts.
const PARTS_MAX: u64 = 1 << 20;

/// The table of one file, and its copy on the disk.
pub(super) struct Parts {
    path: PathBuf,
    table: File,
    size: u64,
    part: u64,
    done: Vec<u64>,
}

/// Bytes `from..end`, which are missing in part `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub index: usize,
    pub from: u64,
    pub end: u64,
}

impl Parts {
    fn beside(file: &Path) -> PathBuf {
        let mut name = file.as_os_str().to_owned();
        name.push(".parts");
        name.into()
    }

    /// The table beside `file`; `None` where there is none.
    ///
    /// # Errors
    /// What the disk says; [`io::ErrorKind::InvalidData`]: it is no table.
    pub(super) fn load(file: &Path) -> io::Result<Option<Parts>> {
        let path = Parts::beside(file);
        let mut table = match File::options().read(true).write(true).open(&path) {
            Ok(table) => table,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        Read::by_ref(&mut table).take(HEAD + 8 * PARTS_MAX).read_to_end(&mut bytes)?;
        let numbers: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("eight bytes are eight bytes")))
            .collect();
        let (size, part, done) = match numbers.as_slice() {
            [magic, size, part, done @ ..] if magic.to_le_bytes() == MAGIC && *part > 0 => (*size, *part, done.to_vec()),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let parts = Parts {
            path,
            table,
            size,
            part,
            done,
        };
        let sound = parts.done.len() as u64 == size.div_ceil(part)
            && bytes.len() % 8 == 0
            && (0..parts.done.len()).all(|index| parts.done[index] <= parts.end(index) - parts.start(index));
        if sound {
            Ok(Some(parts))
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// A new table for a file of `size` bytes whose first `there` are there. Whole on the disk before anything relies on it.
    pub(super) fn create(file: &Path, size: u64, part: u64, there: u64) -> io::Result<Parts> {
        let path = Parts::beside(file);
        let part = part.max(size.div_ceil(PARTS_MAX)).max(1);
        let done: Vec<u64> = (0..size.div_ceil(part))
            .map(|index| there.saturating_sub(index * part).min(part).min(size - index * part))
            .collect();
        let mut bytes = MAGIC.to_vec();
        for number in [size, part].iter().chain(&done) {
            bytes.extend(number.to_le_bytes());
        }
        let new = unfinished(&path);
        fs::write(&new, bytes)?;
        fs::rename(&new, &path)?;
        let table = File::options().read(true).write(true).open(&path)?;
        Ok(Parts {
            path,
            table,
            size,
            part,
            done,
        })
    }

    /// Removes the table beside `file`, if there is one, and what is left of one that was never finished.
    pub(super) fn forget(file: &Path) -> io::Result<()> {
        let table = Parts::beside(file);
        for path in [unfinished(&table), table] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn start(&self, index: usize) -> u64 {
        index as u64 * self.part
    }

    fn end(&self, index: usize) -> u64 {
        (self.start(index) + self.part).min(self.size)
    }

    /// How many bytes there are from the beginning on without a gap.
    pub(super) fn front(&self) -> u64 {
        let whole = |index: &usize| self.start(*index) + self.done[*index] == self.end(*index);
        match (0..self.done.len()).find(|index| !whole(index)) {
            Some(index) => self.start(index) + self.done[index],
            None => self.size,
        }
    }

    /// How many bytes are there in all.
    pub(super) fn total(&self) -> u64 {
        self.done.iter().sum()
    }

    pub(super) fn missing(&self) -> Vec<Span> {
        let spans = (0..self.done.len()).map(|index| Span {
            index,
            from: self.start(index) + self.done[index],
            end: self.end(index),
        });
        spans.filter(|span| span.from < span.end).collect()
    }

    /// `bytes` more are there in a part; they lie in the file already.
    pub(super) fn advance(&mut self, index: usize, bytes: u64) -> io::Result<()> {
        self.set(index, self.done[index] + bytes)
    }

    /// Forgets all that lies behind a gap.
    pub(super) fn cut(&mut self) -> io::Result<()> {
        let front = self.front();
        for index in 0..self.done.len() {
            if self.start(index) > front {
                self.set(index, 0)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, index: usize, done: u64) -> io::Result<()> {
        self.done[index] = done;
        self.table.write_all_at(&done.to_le_bytes(), HEAD + 8 * index as u64)
    }
}

fn unfinished(table: &Path) -> PathBuf {
    let mut name = table.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_survives_and_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        assert!(Parts::load(&file).unwrap().is_none());
        let mut parts = Parts::create(&file, 100, 30, 35).unwrap();
        assert_eq!((parts.front(), parts.total()), (35, 35));
        parts.advance(2, 30).unwrap();
        parts.advance(3, 4).unwrap();
        drop(parts);
        let mut parts = Parts::load(&file).unwrap().unwrap();
        assert_eq!((parts.size(), parts.front(), parts.total()), (100, 35, 69));
        let span = |index, from, end| Span { index, from, end };
        assert_eq!(parts.missing(), [span(1, 35, 60), span(3, 94, 100)]);
        parts.advance(1, 25).unwrap();
        assert_eq!(parts.front(), 94);
        parts.advance(3, 6).unwrap();
        assert_eq!((parts.front(), parts.missing()), (100, vec![]));
        parts.remove().unwrap();
        let mut parts = Parts::create(&file, 100, 30, 0).unwrap();
        parts.advance(1, 30).unwrap();
        parts.cut().unwrap();
        assert_eq!(Parts::load(&file).unwrap().unwrap().total(), 0);
    }

    #[test]
    fn what_is_no_table_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        let table = dir.path().join("x.parts");
        drop(Parts::create(&file, 100, 30, 100).unwrap());
        let good = fs::read(&table).unwrap();
        for spoil in [0, 8, 16, 24] {
            let mut bad = good.clone();
            bad[spoil] ^= 0x80;
            fs::write(&table, bad).unwrap();
            assert!(Parts::load(&file).is_err(), "{spoil}");
        }
        for length in [0, 7, 24, good.len() - 1, good.len() - 8] {
            fs::write(&table, &good[..length]).unwrap();
            assert!(Parts::load(&file).is_err(), "{length}");
        }
        Parts::forget(&file).unwrap();
        Parts::forget(&file).unwrap();
        assert!(Parts::load(&file).unwrap().is_none());
    }
}
