//! What a program asks of its image first.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Of one list: what is more is no start.
const MOST_BYTES: u64 = 1 << 30;
const MOST_ITEMS: usize = 32 << 10;
/// No list's file is larger.
const MOST_TEXT: u64 = 8 << 20;
/// So many lists are kept in a folder: those that were made or changed last.
const MOST_LISTS: usize = 256;
/// What a list's file begins with.
const MAGIC: &[u8; 8] = b"dvrahd1\n";
/// An item: its kind, two numbers of 8 bytes and one of 2, little-endian: offset, length, and the length of the path, which follows.
const HEAD: usize = 19;
const ITSELF: u8 = 1;
const NAMES: u8 = 2;
const BYTES: u8 = 3;

/// One thing to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// From the image's root, without links.
    pub path: PathBuf,
    pub what: What,
}

/// What is asked of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// Whether it is there, and what a link says.
    Itself,
    /// The names in a folder.
    Names,
    /// A part of a file, in bytes.
    Bytes { offset: u64, length: u64 },
}

/// In the order of asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    items: Vec<Item>,
}

impl List {
    /// As many of them as a list may have.
    pub fn new(items: impl IntoIterator<Item = Item>) -> List {
        let mut bytes: u64 = 0;
        let within = |item: &Item| {
            if let What::Bytes { length, .. } = item.what {
                bytes = bytes.saturating_add(length);
            }
            bytes <= MOST_BYTES
        };
        List {
            items: items.into_iter().take(MOST_ITEMS).take_while(within).collect(),
        }
    }

    pub fn items(&self) -> &[Item] {
        &self.items
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
        let mut items = Vec::new();
        while !rest.is_empty() {
            let (head, after) = rest.split_at_checked(HEAD)?;
            let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
            let (path, after) = after.split_at_checked(u16::from_le_bytes([head[17], head[18]]).into())?;
            rest = after;
            items.push(Item {
                path: OsString::from_vec(path.to_vec()).into(),
                what: match head[0] {
                    ITSELF => What::Itself,
                    NAMES => What::Names,
                    BYTES => What::Bytes {
                        offset: number(1),
                        length: number(9),
                    },
                    _ => return None,
                },
            });
        }
        Some(List::new(items))
    }

    fn encoded(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for Item { path, what } in &self.items {
            let path = path.as_os_str().as_bytes();
            let Ok(count) = u16::try_from(path.len()) else { continue };
            let (kind, offset, length) = match *what {
                What::Itself => (ITSELF, 0, 0),
                What::Names => (NAMES, 0, 0),
                What::Bytes { offset, length } => (BYTES, offset, length),
            };
            bytes.push(kind);
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

    fn item(path: &[u8], what: What) -> Item {
        Item {
            path: OsString::from_vec(path.to_vec()).into(),
            what,
        }
    }

    fn bytes(length: u64) -> What {
        What::Bytes { offset: 4096, length }
    }

    #[test]
    fn a_list_is_kept_and_the_oldest_of_many_goes() {
        let folder = tempfile::tempdir().unwrap();
        let lists = folder.path().join("new/lists");
        let list = List::new([
            item(b"usr/lib/\xff", bytes(7)),
            item(b"", What::Names),
            item(b"bin/no", What::Itself),
            item(b"bin/sh", bytes(1 << 20)),
        ]);
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
        for bytes in [
            &b""[..],
            b"dvrahd2\n",
            b"dvrahd1\nshort",
            b"dvrahd1\n\x030123456789abcdef\xff\xffx",
            b"dvrahd1\n\x090123456789abcdef\0\0",
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(List::load(&path), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_list_is_bounded() {
        let list = List::new((0..100_000).map(|_| item(b"a", What::Itself)));
        assert_eq!(list.items().len(), MOST_ITEMS);
        for length in [500 << 20, u64::MAX] {
            let list = List::new((0..100).map(|_| item(b"a", bytes(length))));
            assert!(list.items().len() <= 2);
        }
    }
}
