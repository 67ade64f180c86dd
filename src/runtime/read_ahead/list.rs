//! Files and the parts of them that a program reads first.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Of one list: what is more is no start.
const MOST_BYTES: u64 = 256 << 20;
const MOST_EXTENTS: usize = 16 << 10;
/// No list's file is larger.
const MOST_TEXT: u64 = 8 << 20;
/// So many lists are kept in a folder: those that were made or changed last.
const MOST_LISTS: usize = 256;
/// What a list's file begins with.
const MAGIC: &[u8; 8] = b"dvrahd1\n";

/// A part of a file of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// From the image's root, without links.
    pub path: PathBuf,
    /// In bytes.
    pub offset: u64,
    pub length: u64,
}

/// In the order of reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    extents: Vec<Extent>,
}

impl List {
    /// As many of them as a list may have.
    pub fn new(extents: impl IntoIterator<Item = Extent>) -> List {
        let mut bytes = 0;
        let within = |extent: &Extent| {
            bytes += extent.length;
            bytes <= MOST_BYTES
        };
        List {
            extents: extents.into_iter().take(MOST_EXTENTS).take_while(within).collect(),
        }
    }

    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// In bytes.
    pub fn length(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// The list of a file; none where there is no such file, or it makes no sense.
    pub fn load(path: &Path) -> Option<List> {
        let mut bytes = Vec::new();
        let file = File::open(path).ok()?;
        file.take(MOST_TEXT).read_to_end(&mut bytes).ok()?;
        List::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Option<List> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let mut extents = Vec::new();
        while !rest.is_empty() {
            let (head, after) = rest.split_at_checked(18)?;
            let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
            let (path, after) = after.split_at_checked(u16::from_le_bytes([head[16], head[17]]).into())?;
            rest = after;
            extents.push(Extent {
                path: OsString::from_vec(path.to_vec()).into(),
                offset: number(0),
                length: number(8),
            });
        }
        Some(List::new(extents))
    }

    fn encoded(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for Extent { path, offset, length } in &self.extents {
            let path = path.as_os_str().as_bytes();
            let Ok(count) = u16::try_from(path.len()) else { continue };
            bytes.extend(offset.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(path);
        }
        bytes
    }

    /// Writes the list to a file of `folder`, which is made where it is missing, and removes the oldest of too many. Whoever reads
    /// meanwhile finds the old one or the new one.
    pub fn save(&self, folder: &Path, name: &str) -> io::Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.and_then(|()| tempfile::NamedTempFile::new_in(folder)).and_then(|mut file| {
            file.write_all(&self.encoded())?;
            file.persist(folder.join(name))?;
            Ok(())
        })?;
        sweep(folder)
    }
}

fn sweep(folder: &Path) -> io::Result<()> {
    let mut lists: Vec<(SystemTime, PathBuf)> = fs::read_dir(folder)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    lists.sort();
    let surplus = lists.len().saturating_sub(MOST_LISTS);
    lists
        .into_iter()
        .take(surplus)
        .try_for_each(|(_, path)| match fs::remove_file(path) {
            // Another process swept it.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(path: &[u8], length: u64) -> Extent {
        Extent {
            path: OsString::from_vec(path.to_vec()).into(),
            offset: 4096,
            length,
        }
    }

    #[test]
    fn a_list_is_kept_and_the_oldest_of_many_goes() {
        let folder = tempfile::tempdir().unwrap();
        let lists = folder.path().join("new/lists");
        let list = List::new([extent(b"usr/lib/\xff", 7), extent(b"bin/sh", 4096)]);
        list.save(&lists, "a").unwrap();
        assert_eq!(List::load(&lists.join("a")).as_ref(), Some(&list));
        let old = File::options().write(true).open(lists.join("a")).unwrap();
        old.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        for number in 0..MOST_LISTS {
            list.save(&lists, &number.to_string()).unwrap();
        }
        assert_eq!(fs::read_dir(&lists).unwrap().count(), MOST_LISTS);
        assert!(!lists.join("a").exists());
    }

    #[test]
    fn what_makes_no_sense_is_no_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        assert_eq!(List::load(&path), None);
        for bytes in [&b""[..], b"dvrahd2\n", b"dvrahd1\nshort", b"dvrahd1\n0123456789abcdef\xff\xffx"] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(List::load(&path), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_list_is_bounded() {
        let list = List::new((0..100_000).map(|_| extent(b"a", 1)));
        assert_eq!(list.extents().len(), MOST_EXTENTS);
        let list = List::new((0..100).map(|_| extent(b"a", 100 << 20)));
        assert_eq!(list.extents().len(), 2);
    }
}
