//! Whether all of an image can be read.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::layers::Merged;
use super::tree::{Body, InodeId, Node, Tree};

/// What came of reading all of an image.
#[derive(Debug, Default)]
pub struct Readable {
    /// Regular files, each by one of its names.
    pub files: u64,
    /// Those that cannot be read, by their paths in the image, and why.
    pub damaged: Vec<(PathBuf, io::Error)>,
}

/// Reads every file of an image to its end.
pub fn read_all(merged: &Merged) -> Readable {
    let files = paths(&merged.tree);
    let read = |(path, id): &(PathBuf, InodeId)| match &merged.tree.inode(*id).node {
        Node::File(body) => read_body(merged, body).err().map(|error| (path.clone(), error)),
        _ => None,
    };
    let mut damaged: Vec<(PathBuf, io::Error)> = files.par_iter().filter_map(read).collect();
    damaged.sort_by(|a, b| a.0.cmp(&b.0));
    Readable {
        files: files.len() as u64,
        damaged,
    }
}

fn read_body(merged: &Merged, body: &Body) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    for segment in body.segments() {
        let mut done = 0;
        while done < segment.length {
            let length = (segment.length - done).min(buffer.len() as u64);
            merged.read_exact_at(body, &mut buffer[..length as usize], segment.offset + done)?;
            done += length;
        }
    }
    Ok(())
}

/// The regular files, each once.
fn paths(tree: &Tree) -> Vec<(PathBuf, InodeId)> {
    let mut seen = vec![false; tree.inodes.len()];
    let mut folders = vec![(PathBuf::new(), Tree::ROOT)];
    let mut files = Vec::new();
    while let Some((folder, id)) = folders.pop() {
        for (name, id) in tree.names(id) {
            let path = folder.join(Path::new(OsStr::from_bytes(name)));
            match tree.inode(id).node {
                Node::Folder(_) => folders.push((path, id)),
                Node::File(_) if !std::mem::replace(&mut seen[id.0 as usize], true) => files.push((path, id)),
                _ => {}
            }
        }
    }
    files
}
