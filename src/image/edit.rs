//! Files of our own in a merged tree.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{ImageError, OWN, at, shown};
use super::layer::{Change, Content, clean};
use super::layers::Merged;
use super::limits::{Budget, Limits};
use super::merge::put;
use super::spool::Spool;
use super::tree::{Data, Meta};

/// Something to be put into a tree, owned by root and as old as can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// Without a leading slash.
    pub path: String,
    pub content: AddedContent,
    pub when: When,
}

/// What is put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddedContent {
    Folder,
    /// As `/tmp`: everyone may write, and remove only their own.
    SharedFolder,
    File(Vec<u8>),
    Executable(Vec<u8>),
    Symlink(String),
}

/// Whether an image's own counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It takes the place of what is there.
    Always,
    /// Only where there is nothing.
    Missing,
}

impl Merged {
    /// Adds `additions` as if they were one more layer, in which each may depend on what is below. `scratch` takes their bytes in
    /// an unnamed file.
    ///
    /// # Errors
    /// What the disk says, or where the image has something that makes a path impossible.
    pub fn add(&mut self, additions: &[Addition], scratch: &Path) -> Result<(), ImageError> {
        let spool = tempfile::tempfile_in(scratch).map_err(at("make a scratch file in", scratch))?;
        let limits = Limits::default();
        let mut written = 0;
        let mut changes = Vec::new();
        for addition in additions {
            let (content, mode) = match &addition.content {
                AddedContent::Folder => (Content::Folder, 0o755),
                AddedContent::SharedFolder => (Content::Folder, 0o1777),
                AddedContent::File(bytes) => (append(&spool, &mut written, bytes).map_err(at("write in", scratch))?, 0o644),
                AddedContent::Executable(bytes) => (append(&spool, &mut written, bytes).map_err(at("write in", scratch))?, 0o755),
                AddedContent::Symlink(target) => (Content::Symlink(target.as_bytes().into()), 0o777),
            };
            let meta = Meta { mode, ..Meta::unstated() };
            let path = clean(addition.path.as_bytes(), &limits).map_err(|reason| ImageError::Entry {
                layer: OWN.to_owned(),
                entry: shown(addition.path.as_bytes()),
                reason,
            })?;
            let path = path.into();
            changes.push((Change::Add { path, meta, content }, addition.when));
        }
        let layer = u32::try_from(self.spools.len()).expect("a manifest is too small for so many layers");
        put(&mut self.tree, layer, changes, &Budget::new(limits))?;
        self.spools.push(Spool::Archive(spool));
        Ok(())
    }
}

fn append(spool: &File, written: &mut u64, bytes: &[u8]) -> io::Result<Content> {
    let offset = *written;
    spool.write_all_at(bytes, offset)?;
    *written += bytes.len() as u64;
    Ok(Content::File {
        size: bytes.len() as u64,
        data: Data::Plain(offset),
    })
}
