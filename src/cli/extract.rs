//! `dvrun image extract IMAGE FOLDER`: the files of an image that is there already.

use std::fs::{self, File};
use std::path::Path;

use serde_json::json;

use super::args::Global;
use super::failure::{Failure, exit};
use super::image::find;
use super::pull::refuse_existing;
use crate::image::{ImageError, Merged, READ_CACHE, write_folder};
use crate::sif::{self, Sif};
use crate::squashfs::Squashfs;
use crate::store::{Scratch, Store, StoredRoot};

/// Writes beside `folder` and renames, so that it appears whole or not at all.
pub fn run(image: &str, folder: &Path, global: &Global, store: &Store) -> Result<(), Failure> {
    refuse_existing(folder)?;
    let file = Path::new(image);
    let written = if file.is_file() {
        write(&packed(file)?, folder)
    } else {
        let stored = find(store, image)?;
        // It is not to be deleted meanwhile, and its files are opened.
        let _lock = store.lock(&Store::image_lock(&stored.digest), || {
            eprintln!("  {image}: another process is at it; waiting")
        })?;
        let merged = match stored.root() {
            StoredRoot::Folder(rootfs) => Merged::from_folder(&rootfs).map_err(failed)?,
            StoredRoot::Squashfs { file, .. } => packed(&file)?,
        };
        write(&merged, folder)
    }?;
    if global.json {
        println!("{}", json!({"path": folder, "files": written}));
    } else if !global.quiet {
        println!("{}", folder.display());
    }
    Ok(())
}

/// Returns how many names there are.
fn write(merged: &Merged, folder: &Path) -> Result<u64, Failure> {
    let folder = std::path::absolute(folder).map_err(|error| Failure::new(exit::USAGE, &error, None))?;
    let beside = Scratch::beside(folder.parent().unwrap_or(Path::new("/")))?;
    let made = beside.path().join("new");
    let converted = write_folder(merged, &made, None).map_err(failed)?;
    for note in &converted.notes {
        eprintln!("  {}: {note}", folder.display());
    }
    fs::rename(&made, &folder)
        .map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot create {}: {error}", folder.display())))?;
    Ok(converted.files)
}

/// The tree of a SIF or SquashFS file, whoever made it.
pub fn packed(path: &Path) -> Result<Merged, Failure> {
    let unreadable = |error: std::io::Error| Failure::message(exit::USAGE, format!("cannot read {}: {error}", path.display()));
    let file = File::open(path).map_err(unreadable)?;
    let offset = match sif::is_sif(&file).map_err(unreadable)? {
        true => Sif::read(&file)?.primary()?.offset,
        false => 0,
    };
    let image = Squashfs::open(file, offset, READ_CACHE)?;
    Merged::from_squashfs(image, &path.display().to_string()).map_err(failed)
}

fn failed(error: ImageError) -> Failure {
    let hint = error.hint();
    Failure::new(exit::INFRASTRUCTURE, &error, hint)
}
