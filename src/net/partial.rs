//! A download's file: what is there of it already is hashed once, and every byte after that as it comes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::NetError;
use super::parts::{Parts, Span};
use crate::oci::{Algorithm, Digest, Hasher};

/// An open, locked file of a download. All its methods block.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    algorithm: Algorithm,
    hasher: Hasher,
    /// Bytes that are there from the beginning on without a gap, all of them hashed.
    len: u64,
    /// Where there may be gaps: what lies behind them.
    parts: Option<Parts>,
}

/// Bytes of a part, and where in the file they belong.
pub(super) struct Piece {
    pub part: usize,
    pub offset: u64,
    pub bytes: Bytes,
}

/// Whether what an earlier process left is worth anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Earlier {
    /// The end will be compared with a checksum.
    Keep,
    /// Nothing would tell whether it belongs to the same file.
    Discard,
}

impl Partial {
    /// Opens or creates the file, waits until no other holds it, and hashes what is in it.
    pub(super) fn open(path: &Path, algorithm: Algorithm, earlier: Earlier) -> Result<Partial, NetError> {
        let mut partial = Partial {
            file: open_locked(path).map_err(io_error("open", path))?,
            path: path.to_owned(),
            algorithm,
            hasher: Hasher::new(algorithm),
            len: 0,
            parts: None,
        };
        if earlier == Earlier::Discard {
            partial.restart()?;
            return Ok(partial);
        }
        match Parts::load(path) {
            Ok(parts) => partial.parts = parts,
            // Without its table nothing tells which bytes of the file are any.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => partial.restart()?,
            Err(error) => return Err(io_error("read the parts of", path)(error)),
        }
        let there = partial.file.metadata().map_err(io_error("read", path))?.len();
        let front = partial.parts.as_ref().map_or(there, Parts::front);
        partial.hash_to(front.min(there))?;
        Ok(partial)
    }

    /// Hashes what is in the file on to byte `end`.
    fn hash_to(&mut self, end: u64) -> Result<(), NetError> {
        let mut buffer = vec![0; usize::try_from(end - self.len).unwrap_or(usize::MAX).min(1 << 20)];
        while self.len < end {
            let wanted = usize::try_from(end - self.len).unwrap_or(usize::MAX).min(buffer.len());
            let read = match self.file.read_at(&mut buffer[..wanted], self.len) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_error("read", &self.path)(error)),
            };
            self.hasher.update(&buffer[..read]);
            self.len += read as u64;
        }
        Ok(())
    }

    /// Bytes that are there, gaps or not.
    pub(super) fn total(&self) -> u64 {
        self.parts.as_ref().map_or(self.len, Parts::total)
    }

    /// From now on the file grows in parts of `part` bytes to `size`, in any order. What is missing of them.
    pub(super) fn open_parts(&mut self, size: u64, part: u64) -> Result<Vec<Span>, NetError> {
        if self.parts.as_ref().is_some_and(|parts| parts.size() != size) {
            self.restart()?;
        }
        let parts = match self.parts.take() {
            Some(parts) => parts,
            None => Parts::create(&self.path, size, part, self.len).map_err(io_error("keep the parts of", &self.path))?,
        };
        let missing = parts.missing();
        self.parts = Some(parts);
        Ok(missing)
    }

    /// From now on the file grows at its end alone; what lies behind a gap is forgotten.
    pub(super) fn close_parts(&mut self) -> Result<(), NetError> {
        let Some(mut parts) = self.parts.take() else { return Ok(()) };
        parts
            .cut()
            .and_then(|()| self.file.set_len(self.len))
            .and_then(|()| parts.remove())
            .map_err(io_error("cut", &self.path))
    }

    /// Takes pieces until the sender is gone, or the disk is full.
    pub(super) fn write_pieces(mut self, mut pieces: mpsc::Receiver<Piece>) -> (Partial, Result<(), NetError>) {
        while let Some(piece) = pieces.blocking_recv() {
            if let Err(error) = self.place(&piece) {
                return (self, Err(error));
            }
        }
        (self, Ok(()))
    }

    fn place(&mut self, piece: &Piece) -> Result<(), NetError> {
        let failed = || io_error("write", &self.path);
        self.file.write_all_at(&piece.bytes, piece.offset).map_err(failed())?;
        let parts = self.parts.as_mut().expect("pieces come after `open_parts`");
        parts.advance(piece.part, piece.bytes.len() as u64).map_err(failed())?;
        let front = parts.front();
        if piece.offset == self.len {
            self.hasher.update(&piece.bytes);
            self.len += piece.bytes.len() as u64;
        }
        self.hash_to(front)
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Of the bytes so far.
    pub(super) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Forgets all bytes.
    pub(super) fn restart(&mut self) -> Result<(), NetError> {
        self.parts = None;
        Parts::forget(&self.path)
            .and_then(|()| self.file.set_len(0))
            .map_err(io_error("empty", &self.path))?;
        self.hasher = Hasher::new(self.algorithm);
        self.len = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), NetError> {
        self.close_parts()?;
        self.file.write_all_at(bytes, self.len).map_err(io_error("write", &self.path))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Takes chunks until the sender is gone, or the disk is full.
    pub(super) fn write(mut self, mut chunks: mpsc::Receiver<Bytes>) -> (Partial, Result<(), NetError>) {
        while let Some(chunk) = chunks.blocking_recv() {
            if let Err(error) = self.append(&chunk) {
                return (self, Err(error));
            }
        }
        (self, Ok(()))
    }

    /// Brings all of it to the disk.
    pub(super) fn sync(&self) -> Result<(), NetError> {
        self.file
            .sync_all()
            .and_then(|()| Parts::forget(&self.path))
            .map_err(io_error("write", &self.path))
    }

    /// For what turned out to be wrong.
    pub(super) fn remove(self) -> Result<(), NetError> {
        Parts::forget(&self.path)
            .and_then(|()| fs::remove_file(&self.path))
            .map_err(io_error("remove", &self.path))
    }
}

/// The file at `path`, locked: two writers would mix their bytes. Whoever held it may have given it its final name
/// meanwhile; then the path is another file, or none, and that one is opened.
fn open_locked(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    loop {
        let file = match File::options().read(true).write(true).create(true).truncate(false).open(path) {
            // Its process was killed between making it read-only and giving it its final name.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_read_only(path) => {
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
                continue;
            }
            opened => opened?,
        };
        file.lock()?;
        let held = file.metadata()?;
        match fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_read_only(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o200 == 0)
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let path = path.to_owned();
    move |source| NetError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_counts_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/x");
        let mut partial = Partial::open(&path, Algorithm::Sha256, Earlier::Keep).unwrap();
        partial.append(b"hel").unwrap();
        drop(partial);
        let mut partial = Partial::open(&path, Algorithm::Sha256, Earlier::Keep).unwrap();
        assert_eq!(partial.len(), 3);
        partial.append(b"lo").unwrap();
        assert_eq!(partial.digest(), Digest::sha256(b"hello"));
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        drop(partial);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        let partial = Partial::open(&path, Algorithm::Sha256, Earlier::Discard).unwrap();
        assert_eq!((partial.len(), fs::read(&path).unwrap().len()), (0, 0));
        partial.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_renamed_file_is_never_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (path, done) = (dir.path().join("x"), dir.path().join("done"));
        let mut first = Partial::open(&path, Algorithm::Sha256, Earlier::Keep).unwrap();
        first.append(b"whole").unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| Partial::open(&path, Algorithm::Sha256, Earlier::Keep).map(|p| p.len()));
            // Whether the second waits already or not, it must not get the renamed file.
            fs::rename(&path, &done).unwrap();
            drop(first);
            assert_eq!(second.join().unwrap().unwrap(), 0);
        });
        assert_eq!(fs::read(&done).unwrap(), b"whole");
    }
}
