//! Whether a stored image still is what was stored.
//!
//! Beside an image's `rootfs/` lies `checksums`, in the format of `sha256sum` (with a backslash before a line whose name has one, or
//! a line break), so that `cd rootfs && sha256sum --check ../checksums` says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::readable::{OpenFolders, open_own};
use super::{Place, Store, StoreError, StoredImage};
use crate::oci::{Digest, Hasher};

/// Something of an image that is not as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A file with other bytes; by its path in the image.
    Changed(PathBuf),
    Missing(PathBuf),
    /// A file that the image did not have.
    Added(PathBuf),
    /// A layer, configuration or manifest with other bytes. It has been deleted: it would be taken for what its name says.
    Blob(Digest),
    /// There is no list of checksums: an earlier version stored the image.
    Unlisted,
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files of the root file system, and blobs.
    pub files: u64,
    pub damage: Vec<Damage>,
}

/// What [`Store::check_blob`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobState {
    Absent,
    Whole,
    /// It was damaged, and is gone.
    Removed,
}

/// Of the list, in an image's folder.
pub(super) const CHECKSUMS: &str = "checksums";

/// Adds a line to a list of checksums.
///
/// # Errors
/// What the writer says.
pub fn write_checksum(list: &mut impl Write, path: &Path, digest: &Digest) -> io::Result<()> {
    let name = path.as_os_str().as_bytes();
    let mut escaped = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'\\' => escaped.extend(b"\\\\"),
            b'\n' => escaped.extend(b"\\n"),
            b'\r' => escaped.extend(b"\\r"),
            other => escaped.push(other),
        }
    }
    if escaped.len() > name.len() {
        list.write_all(b"\\")?;
    }
    list.write_all(digest.hex().as_bytes())?;
    list.write_all(b"  ")?;
    list.write_all(&escaped)?;
    list.write_all(b"\n")
}

/// The path and the checksum in a line; `None` if it is none.
fn read_checksum(line: &[u8]) -> Option<(PathBuf, Digest)> {
    let escaped = line.starts_with(b"\\");
    let line = &line[usize::from(escaped)..];
    let at = line.windows(2).position(|pair| pair == b"  ")?;
    let digest = format!("sha256:{}", std::str::from_utf8(&line[..at]).ok()?).parse().ok()?;
    let mut name = Vec::with_capacity(line.len());
    let mut rest = line[at + 2..].iter();
    while let Some(&byte) = rest.next() {
        name.push(match (byte, escaped) {
            (b'\\', true) => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b'\\' => b'\\',
                _ => return None,
            },
            (other, _) => other,
        });
    }
    Some((PathBuf::from(OsStr::from_bytes(&name)), digest))
}

impl Store {
    /// Reads all of an image again, and its blobs that are there. The caller holds the image's lock.
    ///
    /// # Errors
    /// What the file system says, other than that something is missing.
    pub fn verify_image(&self, image: &StoredImage) -> Result<Verified, StoreError> {
        let mut verified = self.verify_blobs(image)?;
        if let Place::File { path, .. } = &image.info.root {
            let file = image.path.join(path);
            // A SIF's digest is of all its bytes, whoever put it there.
            verified.files += 1;
            if !holds(&file, &image.info.config_digest).map_err(StoreError::at("read", &file))? {
                verified.damage.push(Damage::Changed(path.clone()));
            }
            return Ok(verified);
        }
        let rootfs = image.path.join(super::images::ROOTFS);
        if !rootfs.is_dir() {
            return Ok(verified);
        }
        let list = image.path.join(CHECKSUMS);
        let text = match fs::read(&list) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                verified.damage.push(Damage::Unlisted);
                return Ok(verified);
            }
            other => other.map_err(StoreError::at("read", &list))?,
        };
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let listed: Option<BTreeMap<PathBuf, Digest>> = lines.map(read_checksum).collect();
        let Some(listed) = listed else {
            verified.damage.push(Damage::Changed(Path::new("..").join(CHECKSUMS)));
            return Ok(verified);
        };
        // The modes are lifted for as long as files below are read.
        let (found, _open) = regular_files(&rootfs)?;
        let wrong = |(path, digest): (&PathBuf, &Digest)| -> Result<Option<Damage>, StoreError> {
            if !found.contains(path) {
                return Ok(Some(Damage::Missing(path.clone())));
            }
            let place = rootfs.join(path);
            let same = holds(&place, digest).map_err(StoreError::at("read", &place))?;
            Ok((!same).then(|| Damage::Changed(path.clone())))
        };
        let wrong: Vec<Option<Damage>> = listed.par_iter().map(wrong).collect::<Result<_, _>>()?;
        verified.damage.extend(wrong.into_iter().flatten());
        let added = found.iter().filter(|path| !listed.contains_key(*path));
        verified.damage.extend(added.cloned().map(Damage::Added));
        verified.files += listed.len() as u64;
        Ok(verified)
    }

    /// Reads a blob again; one that is not what its name says is deleted.
    ///
    /// # Errors
    /// What the file system says.
    pub fn check_blob(&self, digest: &Digest) -> Result<BlobState, StoreError> {
        let Some(path) = self.find_blob(digest) else {
            return Ok(BlobState::Absent);
        };
        if holds(&path, digest).map_err(StoreError::at("read", &path))? {
            return Ok(BlobState::Whole);
        }
        fs::remove_file(&path).map_err(StoreError::at("remove", &path))?;
        Ok(BlobState::Removed)
    }

    fn verify_blobs(&self, image: &StoredImage) -> Result<Verified, StoreError> {
        let mut verified = Verified::default();
        let layers = image.info.layers.iter().map(|layer| &layer.digest);
        let digests: BTreeSet<&Digest> = [&image.info.manifest, &image.info.config_digest]
            .into_iter()
            .chain(layers)
            .collect();
        for digest in digests {
            match self.check_blob(digest)? {
                BlobState::Absent => continue,
                BlobState::Whole => {}
                BlobState::Removed => verified.damage.push(Damage::Blob(digest.clone())),
            }
            verified.files += 1;
        }
        Ok(verified)
    }
}

/// By their paths in `rootfs`.
fn regular_files(rootfs: &Path) -> Result<(BTreeSet<PathBuf>, OpenFolders), StoreError> {
    let mut found = BTreeSet::new();
    let mut open = OpenFolders::default();
    let mut folders = vec![rootfs.to_owned()];
    while let Some(folder) = folders.pop() {
        open.enter(&folder).map_err(StoreError::at("open", &folder))?;
        for entry in fs::read_dir(&folder).map_err(StoreError::at("read", &folder))? {
            let entry = entry.map_err(StoreError::at("read", &folder))?;
            let kind = entry.file_type().map_err(StoreError::at("look at", &folder))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                found.insert(path.strip_prefix(rootfs).expect("it was found below").to_owned());
            }
        }
    }
    Ok((found, open))
}

/// Whether the file's bytes have that digest.
fn holds(path: &Path, digest: &Digest) -> io::Result<bool> {
    let mut file = open_own(path)?;
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish() == *digest),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // What the disk cannot read is not what was written.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for name in [&b"bin/sh"[..], b"a  b", b"new\nline", b"back\\slash", b"\xff\r", b"\\"] {
            let (path, digest) = (Path::new(OsStr::from_bytes(name)), Digest::sha256(name));
            let mut line = Vec::new();
            write_checksum(&mut line, path, &digest).unwrap();
            assert_eq!(line.pop(), Some(b'\n'));
            assert_eq!(read_checksum(&line), Some((path.to_owned(), digest)), "{line:?}");
        }
        for line in [
            &b""[..],
            b"abc  x",
            b"\\x",
            b"\\e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  \\x",
        ] {
            assert_eq!(read_checksum(line), None);
        }
    }
}
