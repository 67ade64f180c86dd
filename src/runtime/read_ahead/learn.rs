//! From a server's trace to a list.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::list::{Item, List, What};
use super::trace::{Question, Trace, questions};
use crate::runtime::container::ReadAhead;
use crate::squashfs::{InodeRef, Squashfs};

/// A program that asks less starts as fast without a list.
const WORTH: usize = 512;
/// Of a hundred questions so many must be new to make another list.
const CHANGE: usize = 25;
/// To look names up, in bytes.
const CACHE: usize = 4 << 20;
/// More names than this are not remembered.
const MOST_NAMES: usize = 1 << 18;
/// Folders within folders.
const MOST_DEPTH: usize = 128;

/// What is known of how a program starts, and what is being learnt.
pub struct Learning {
    place: ReadAhead,
    name: String,
    known: List,
    trace: File,
    image: PathBuf,
    offset: u64,
}

impl Learning {
    /// Of programs in the image that begins at `offset` of the file at `path`; with the end that its server notes questions with.
    ///
    /// # Errors
    /// No memory for a trace.
    pub fn begin(place: &ReadAhead, image: &Squashfs, path: &Path, offset: u64) -> nix::Result<(Learning, Trace)> {
        let name = name(image, &place.program);
        let (trace, file) = Trace::new()?;
        let learning = Learning {
            known: List::load(&place.folder.join(&name)).unwrap_or_default(),
            place: place.clone(),
            name,
            trace: file,
            image: path.to_owned(),
            offset,
        };
        Ok((learning, trace))
    }

    /// What was learnt from earlier containers, or nothing.
    pub fn known(&self) -> &List {
        &self.known
    }

    /// Keeps what this container has shown, if it is worth it and new. A list that cannot be kept is as good as none: nothing is said.
    pub fn end(self) {
        if let Some(list) = self.list() {
            list.save(&self.place.folder, &self.name).unwrap_or_default();
        }
    }

    fn list(&self) -> Option<List> {
        let mut bytes = vec![0; usize::try_from(self.trace.metadata().ok()?.len()).ok()?];
        self.trace.read_exact_at(&mut bytes, 0).ok()?;
        let asked = questions(&bytes).count();
        if asked < WORTH {
            return None;
        }
        let image = Squashfs::open(File::open(&self.image).ok()?, self.offset, CACHE).ok()?;
        let (new, count) = unknown(&bytes, &image, &self.known);
        let enough = count * 100 > asked * CHANGE;
        enough.then(|| List::new(new.into_iter().chain(self.known.items().iter().cloned())))
    }
}

/// What a list is called: by the image, which its superblock stands for, and the program.
fn name(image: &Squashfs, program: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(image.superblock());
    hash.update(program.as_bytes());
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What was asked for and nothing in `known` covers, by path, and how many questions that were. Parts of a file that follow each
/// other are one item.
fn unknown(trace: &[u8], image: &Squashfs, known: &List) -> (Vec<Item>, usize) {
    let names = names(trace, image);
    let used = used(trace);
    let known = Known::of(known);
    let path = |inode| path(&names, image.root(), inode);
    let mut items: Vec<Item> = Vec::new();
    let mut count = 0;
    for question in questions(trace) {
        let item = match question {
            // Whoever asks for what is in it asks for the name.
            Question::Name { inode: Some(inode), .. } if used.contains(&inode) => None,
            Question::Name { folder, name, .. } => path(folder).map(|folder| Item {
                path: folder.join(OsStr::from_bytes(name)),
                what: What::Itself,
            }),
            Question::Names(folder) => path(folder).map(|path| Item { path, what: What::Names }),
            Question::Link(link) => path(link).map(|path| Item { path, what: What::Itself }),
            Question::Bytes { inode, offset, length } => path(inode).map(|path| Item {
                path,
                what: What::Bytes { offset, length },
            }),
        };
        let Some(item) = item.filter(|item| !known.covers(item)) else {
            continue;
        };
        count += 1;
        if !items.last_mut().is_some_and(|last| joined(last, &item)) {
            items.push(item);
        }
    }
    (items, count)
}

/// Makes `next` a part of `last` where it follows it, or says the same.
fn joined(last: &mut Item, next: &Item) -> bool {
    if last.path != next.path {
        return false;
    }
    match (&mut last.what, next.what) {
        (What::Bytes { offset, length }, What::Bytes { offset: at, length: more }) if offset.checked_add(*length) == Some(at) => {
            *length = length.saturating_add(more);
            true
        }
        (last, next) => *last == next,
    }
}

/// What is read, listed, or has something in it that is asked for.
fn used(trace: &[u8]) -> HashSet<InodeRef> {
    let inodes = questions(trace).map(|question| match question {
        Question::Name { folder, .. } | Question::Names(folder) => folder,
        Question::Bytes { inode, .. } | Question::Link(inode) => inode,
    });
    inodes.collect()
}

/// What a list covers.
struct Known<'a> {
    others: HashSet<(&'a Path, What)>,
    /// Parts of files without overlaps: where each begins and ends.
    parts: HashMap<&'a Path, Vec<(u64, u64)>>,
}

impl Known<'_> {
    fn of(list: &List) -> Known<'_> {
        let mut known = Known {
            others: HashSet::new(),
            parts: HashMap::new(),
        };
        for item in list.items() {
            match item.what {
                What::Bytes { offset, length } => {
                    let part = (offset, offset.saturating_add(length));
                    known.parts.entry(&item.path).or_default().push(part);
                }
                what => {
                    known.others.insert((&item.path, what));
                }
            }
        }
        for parts in known.parts.values_mut() {
            parts.sort_unstable();
            parts.dedup_by(|next, last| {
                let joined = next.0 <= last.1;
                if joined {
                    last.1 = last.1.max(next.1);
                }
                joined
            });
        }
        known
    }

    fn covers(&self, item: &Item) -> bool {
        let What::Bytes { offset, length } = item.what else {
            return self.others.contains(&(item.path.as_path(), item.what));
        };
        let end = offset.saturating_add(length);
        let parts = self.parts.get(item.path.as_path()).into_iter().flatten();
        parts.into_iter().any(|&(from, to)| from <= offset && end <= to)
    }
}

type Names = HashMap<InodeRef, (InodeRef, Box<[u8]>)>;

/// The folder and the name of whatever was asked for, or listed.
fn names(trace: &[u8], image: &Squashfs) -> Names {
    let mut names = Names::new();
    for question in questions(trace) {
        match question {
            Question::Name {
                folder,
                name,
                inode: Some(inode),
            } => {
                names.insert(inode, (folder, name.into()));
            }
            Question::Names(folder) if names.len() < MOST_NAMES => {
                // What is damaged was told already.
                let Ok(listing) = image.inode(folder).and_then(|inode| image.list(&inode)) else {
                    continue;
                };
                for index in 0.. {
                    let Some(entry) = listing.get(index) else { break };
                    names.entry(entry.inode).or_insert_with(|| (folder, entry.name.into()));
                }
            }
            Question::Name { .. } | Question::Names(_) | Question::Link(_) | Question::Bytes { .. } => {}
        }
    }
    names
}

fn path(names: &Names, root: InodeRef, inode: InodeRef) -> Option<PathBuf> {
    let mut parts = Vec::new();
    let mut here = inode;
    while here != root {
        let (folder, name) = names.get(&here)?;
        parts.push(OsString::from_vec(name.to_vec()));
        here = *folder;
        if parts.len() > MOST_DEPTH {
            return None;
        }
    }
    Some(parts.into_iter().rev().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(path: &str, what: What) -> Item {
        Item { path: path.into(), what }
    }

    fn bytes(offset: u64, length: u64) -> What {
        What::Bytes { offset, length }
    }

    #[test]
    fn what_is_covered_is_nothing_new() {
        let list = List::new([
            item("a", bytes(8, 4)),
            item("b", bytes(0, 4)),
            item("a", bytes(0, 8)),
            item("a", bytes(20, 1 << 20)),
            item("c", What::Names),
        ]);
        let known = Known::of(&list);
        let covers = |path: &str, what| known.covers(&item(path, what));
        assert!(covers("a", bytes(0, 12)) && covers("a", bytes(7, 2)) && covers("b", bytes(0, 4)) && covers("a", bytes(1 << 20, 1)));
        assert!(!covers("a", bytes(0, 13)) && !covers("a", bytes(15, 1)) && !covers("b", bytes(4, 1)) && !covers("c", bytes(0, 1)));
        assert!(covers("c", What::Names) && !covers("c", What::Itself) && !covers("a", What::Names));
    }

    #[test]
    fn what_follows_is_one_item() {
        let mut last = item("a", bytes(0, 8));
        assert!(joined(&mut last, &item("a", bytes(8, 8))) && last.what == bytes(0, 16));
        assert!(joined(&mut last, &item("a", bytes(0, 16))) && last.what == bytes(0, 16));
        assert!(!joined(&mut last, &item("b", bytes(16, 8))) && !joined(&mut last, &item("a", bytes(17, 8))));
        assert!(!joined(&mut last, &item("a", What::Itself)));
    }

    #[test]
    fn a_path_has_an_end() {
        let names = Names::from([
            (InodeRef(1), (InodeRef(2), b"a".as_slice().into())),
            (InodeRef(2), (InodeRef(0), b"lib".as_slice().into())),
            // A folder within itself, as a hostile image may say.
            (InodeRef(3), (InodeRef(3), b"loop".as_slice().into())),
        ]);
        let path = |inode| path(&names, InodeRef(0), InodeRef(inode));
        assert_eq!(path(1), Some(PathBuf::from("lib/a")));
        assert_eq!((path(3), path(4)), (None, None));
    }
}
