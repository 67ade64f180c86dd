//! From a server's trace to a list.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::list::{Extent, List};
use super::trace::{Question, Trace, questions};
use crate::runtime::container::ReadAhead;
use crate::squashfs::{InodeRef, Squashfs};

/// A program that asks for less starts as fast without a list.
const WORTH: usize = 256;
/// Of a list's bytes so many in a hundred must be new to make another of it.
const CHANGE: u64 = 25;
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
        let is_read = |question: &Question<'_>| matches!(question, Question::Bytes { .. });
        if questions(&bytes).filter(is_read).count() < WORTH {
            return None;
        }
        let image = Squashfs::open(File::open(&self.image).ok()?, self.offset, 1 << 20).ok()?;
        let new = unknown(&bytes, &image, &self.known);
        let changed: u64 = new.iter().map(|extent| extent.length).sum();
        let enough = changed.saturating_mul(100) > self.known.length().saturating_mul(CHANGE);
        enough.then(|| List::new(new.into_iter().chain(self.known.extents().iter().cloned())))
    }
}

/// What a list is called: by the image, which its superblock stands for, and the program.
fn name(image: &Squashfs, program: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(image.superblock());
    hash.update(program.as_bytes());
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What was read and no part of `known` covers, by path; parts that follow each other as one.
fn unknown(trace: &[u8], image: &Squashfs, known: &List) -> Vec<Extent> {
    let names = names(trace, image);
    let known = Known::of(known);
    let mut extents: Vec<Extent> = Vec::new();
    for question in questions(trace) {
        let Question::Bytes { inode, offset, length } = question else {
            continue;
        };
        let Some(path) = path(&names, image.root(), inode) else { continue };
        if known.covers(&path, offset, length) {
            continue;
        }
        match extents.last_mut() {
            Some(last) if last.path == path && last.offset.checked_add(last.length) == Some(offset) => last.length += length,
            _ => extents.push(Extent { path, offset, length }),
        }
    }
    extents
}

/// The parts of files that a list names, without overlaps: where each begins and ends.
struct Known<'a>(HashMap<&'a Path, Vec<(u64, u64)>>);

impl Known<'_> {
    fn of(list: &List) -> Known<'_> {
        let mut files: HashMap<&Path, Vec<(u64, u64)>> = HashMap::new();
        for extent in list.extents() {
            let part = (extent.offset, extent.offset.saturating_add(extent.length));
            files.entry(&extent.path).or_default().push(part);
        }
        for parts in files.values_mut() {
            parts.sort_unstable();
            parts.dedup_by(|next, last| {
                let joined = next.0 <= last.1;
                if joined {
                    last.1 = last.1.max(next.1);
                }
                joined
            });
        }
        Known(files)
    }

    fn covers(&self, path: &Path, offset: u64, length: u64) -> bool {
        let parts = self.0.get(path).into_iter().flatten();
        parts
            .into_iter()
            .any(|&(from, to)| from <= offset && offset.saturating_add(length) <= to)
    }
}

type Names = HashMap<InodeRef, (InodeRef, Box<[u8]>)>;

/// The folder and the name of whatever was asked for, or listed.
fn names(trace: &[u8], image: &Squashfs) -> Names {
    let mut names = Names::new();
    for question in questions(trace) {
        match question {
            Question::Name { folder, name, inode } => {
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
            Question::Names(_) | Question::Bytes { .. } => {}
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

    #[test]
    fn what_is_covered_is_nothing_new() {
        let extent = |path: &str, offset, length| Extent {
            path: path.into(),
            offset,
            length,
        };
        let list = List::new([extent("a", 8, 4), extent("b", 0, 4), extent("a", 0, 8), extent("a", 20, u64::MAX)]);
        let known = Known::of(&list);
        let covers = |path: &str, offset, length| known.covers(Path::new(path), offset, length);
        assert!(covers("a", 0, 12) && covers("a", 7, 2) && covers("b", 0, 4) && covers("a", 1 << 40, 1));
        assert!(!covers("a", 0, 13) && !covers("a", 15, 1) && !covers("b", 4, 1) && !covers("c", 0, 1));
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
