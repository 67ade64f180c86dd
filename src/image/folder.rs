//! A merged tree → a root folder, written by an ordinary user.
//!
//! Owners become the caller; set-ID bits, devices and privileged attributes are left out and told as [`Note`]s. Modes, times,
//! `user.*` attributes, holes and hard links are kept.
//!
//! The folder is new and the caller's alone while it is filled, and every name in it comes from the tree, where links have no
//! children: folders are made first, links last, so no path that is written to can lead through a link.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;
use rayon::prelude::*;
use rustix::fs::XattrFlags;

use super::error::{ImageError, at, shown};
use super::layer::LayerBlob;
use super::layers::{Layers, Merged};
use super::limits::Limits;
use super::note::{Note, NoteKind};
use super::tree::{Body, InodeId, Meta, Node, Segment, Time, Tree};
use crate::oci::{Algorithm, Digest, Hasher};
use crate::store::write_checksum;

/// What came of a conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// What could not be kept, one note a kind.
    pub notes: Vec<Note>,
    /// Bytes of file content, each hard-linked file once, holes not at all.
    pub bytes: u64,
    /// Names of all kinds, the root not counted.
    pub files: u64,
}

/// Layers, lowest first, → the new folder `out`. `scratch` holds the uncompressed layers meanwhile, in unnamed files.
///
/// # Errors
/// Damaged or hostile layers, limits, and what the disk has to say. Whatever of `out` was written stays: it is the caller's to
/// remove ([`crate::store::remove_tree`]).
pub fn convert_folder(layers: &[LayerBlob], scratch: &Path, out: &Path, limits: Limits) -> Result<Converted, ImageError> {
    let reading = Layers::new(layers.len(), scratch, limits);
    for (index, layer) in layers.iter().enumerate() {
        reading.add(index, layer.clone());
    }
    write_folder(&reading.finish()?, out, None)
}

/// Writes `merged` as the folder `out`, which must not exist yet, and a list of its files' checksums as the file `checksums`.
///
/// # Errors
/// As [`convert_folder`].
pub fn write_folder(merged: &Merged, out: &Path, checksums: Option<&Path>) -> Result<Converted, ImageError> {
    let tree = &merged.tree;
    let plan = Plan::new(tree, out);
    for (path, _) in &plan.folders {
        fs::DirBuilder::new().mode(0o700).create(path).map_err(at("create", path))?;
    }
    let lost: Vec<Loss> = plan
        .files
        .par_iter()
        .map_init(
            || vec![0; COPY],
            |buffer, (path, id)| write_file(merged, path, *id, buffer, checksums.is_some()).map_err(at("write", path)),
        )
        .collect::<Result<_, _>>()?;
    if let Some(list) = checksums {
        write_checksums(&plan, &lost, out, list).map_err(at("write", list))?;
    }
    plan.hard_links
        .par_iter()
        .try_for_each(|(target, path)| hard_link(target, path).map_err(at("link", path)))?;
    plan.links.par_iter().try_for_each(|(path, id)| {
        let inode = tree.inode(*id);
        if let Node::Symlink(target) = &inode.node {
            std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), path).map_err(at("create", path))?;
            set_times(path, inode.meta.mtime).map_err(at("date", path))?;
        }
        Ok(())
    })?;
    // Last, from the innermost: neither an unwritable mode nor a time is disturbed by what comes after it.
    let mut folder_loss = Vec::new();
    for (path, id) in plan.folders.iter().rev() {
        folder_loss.push(finish_folder(path, &tree.inode(*id).meta).map_err(at("write", path))?);
    }
    let mut notes = Notes { out, list: Vec::new() };
    for (path, loss) in plan.files.iter().map(|(path, _)| path).zip(&lost) {
        notes.add(path, loss);
    }
    for (path, loss) in plan.folders.iter().rev().map(|(path, _)| path).zip(&folder_loss).rev() {
        notes.add(path, loss);
    }
    for (path, id) in &plan.links {
        if !tree.inode(*id).meta.xattrs.is_empty() {
            notes.one(path, NoteKind::Xattr);
        }
    }
    Ok(Converted {
        notes: notes.list,
        bytes: lost.iter().map(|loss| loss.bytes).sum(),
        files: (plan.folders.len() - 1 + plan.files.len() + plan.hard_links.len() + plan.links.len()) as u64,
    })
}

const COPY: usize = 256 << 10;

/// What is to be made, in the order of the tree.
struct Plan {
    /// Outer before inner; `out` itself is the first.
    folders: Vec<(PathBuf, InodeId)>,
    /// Everything with a mode that is no folder, under its first name.
    files: Vec<(PathBuf, InodeId)>,
    /// First name and further name.
    hard_links: Vec<(PathBuf, PathBuf)>,
    links: Vec<(PathBuf, InodeId)>,
}

impl Plan {
    fn new(tree: &Tree, out: &Path) -> Plan {
        let mut plan = Plan {
            folders: vec![(out.to_owned(), Tree::ROOT)],
            files: Vec::new(),
            hard_links: Vec::new(),
            links: Vec::new(),
        };
        let mut first_names = HashMap::new();
        let mut next = 0;
        while let Some((folder, id)) = plan.folders.get(next).cloned() {
            next += 1;
            for (name, id) in tree.names(id) {
                let path = folder.join(std::ffi::OsStr::from_bytes(name));
                let inode = tree.inode(id);
                if matches!(inode.node, Node::Folder(_)) {
                    plan.folders.push((path, id));
                    continue;
                }
                if inode.links > 1 {
                    match first_names.entry(id) {
                        std::collections::hash_map::Entry::Vacant(entry) => {
                            entry.insert(path.clone());
                        }
                        // A second symbolic link is as good as a second name of it.
                        std::collections::hash_map::Entry::Occupied(first) if !matches!(inode.node, Node::Symlink(_)) => {
                            plan.hard_links.push((first.get().clone(), path));
                            continue;
                        }
                        std::collections::hash_map::Entry::Occupied(_) => {}
                    }
                }
                match inode.node {
                    Node::Symlink(_) => plan.links.push((path, id)),
                    _ => plan.files.push((path, id)),
                }
            }
        }
        plan
    }
}

/// What one inode had to leave out, and what it took.
#[derive(Default)]
struct Loss {
    device: bool,
    set_id: bool,
    xattr: bool,
    bytes: u64,
    /// Of the content, where it was asked for.
    digest: Option<Digest>,
}

/// One line for each name of a file.
fn write_checksums(plan: &Plan, files: &[Loss], out: &Path, list: &Path) -> io::Result<()> {
    let mut to = BufWriter::new(File::create_new(list)?);
    let inside = |path: &Path| path.strip_prefix(out).unwrap_or(path).to_owned();
    let mut linked: HashMap<&Path, Option<&Digest>> = plan.hard_links.iter().map(|(target, _)| (target.as_path(), None)).collect();
    for ((path, _), Loss { digest, .. }) in plan.files.iter().zip(files) {
        if let Some(digest) = digest {
            write_checksum(&mut to, &inside(path), digest)?;
            linked.entry(path).and_modify(|known| *known = Some(digest));
        }
    }
    for (target, path) in &plan.hard_links {
        // None of a FIFO.
        if let Some(digest) = linked.get(target.as_path()).copied().flatten() {
            write_checksum(&mut to, &inside(path), digest)?;
        }
    }
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn write_file(merged: &Merged, path: &Path, id: InodeId, buffer: &mut [u8], hash: bool) -> io::Result<Loss> {
    let inode = merged.tree.inode(id);
    let mut loss = Loss::default();
    if matches!(inode.node, Node::Fifo) {
        nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600))?;
        loss.xattr = !inode.meta.xattrs.is_empty();
        fs::set_permissions(path, fs::Permissions::from_mode(u32::from(inode.meta.mode & 0o777)))?;
        set_times(path, inode.meta.mtime)?;
        return Ok(loss);
    }
    // Exclusive: what is there already can only be a mistake.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut hasher = hash.then(|| Hasher::new(Algorithm::Sha256));
    match &inode.node {
        Node::File(body) => loss.bytes = copy_body(merged, body, &file, buffer, hasher.as_mut())?,
        Node::CharDevice { .. } | Node::BlockDevice { .. } => loss.device = true,
        Node::Folder(_) | Node::Symlink(_) | Node::Fifo => unreachable!("planned as something else"),
    }
    loss.digest = hasher.map(Hasher::finish);
    finish(&file, &inode.meta, 0o777, &mut loss)?;
    Ok(loss)
}

/// Returns how many bytes were written; holes stay holes, and whole buffers of zeros become some.
fn copy_body(merged: &Merged, body: &Body, file: &File, buffer: &mut [u8], mut hasher: Option<&mut Hasher>) -> io::Result<u64> {
    // Before its parts: what is not written stays a hole.
    file.set_len(body.size)?;
    let (mut written, mut hashed) = (0, 0);
    let zeros = |hasher: &mut Hasher, mut count: u64| {
        while count > 0 {
            let step = count.min(ZEROS.len() as u64);
            hasher.update(&ZEROS[..usize::try_from(step).expect("at most the zeros")]);
            count -= step;
        }
    };
    for Segment { at, length, offset } in body.segments() {
        let mut done = 0;
        while done < length {
            let step = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
            let bytes = &mut buffer[..step];
            merged.read_exact_at(body, bytes, offset + done)?;
            if bytes.iter().any(|&byte| byte != 0) {
                file.write_all_at(bytes, at + done)?;
                written += step as u64;
            }
            if let Some(hasher) = hasher.as_deref_mut() {
                zeros(hasher, at + done - hashed);
                hasher.update(bytes);
                hashed = at + done + step as u64;
            }
            done += step as u64;
        }
    }
    if let Some(hasher) = hasher {
        zeros(hasher, body.size - hashed);
    }
    Ok(written)
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

fn finish_folder(path: &Path, meta: &Meta) -> io::Result<Loss> {
    let mut loss = Loss::default();
    finish(&File::open(path)?, meta, 0o1777, &mut loss)?;
    Ok(loss)
}

/// Attributes before the mode, which may forbid them; the time last.
fn finish(file: &File, meta: &Meta, mask: u16, loss: &mut Loss) -> io::Result<()> {
    for xattr in &*meta.xattrs {
        if !xattr.name.starts_with(b"user.") {
            loss.xattr = true;
            continue;
        }
        match rustix::fs::fsetxattr(file, &*xattr.name, &xattr.value, XattrFlags::empty()) {
            Ok(()) => {}
            // The file system has no such attributes, or no room for this one.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM | rustix::io::Errno::NOSPC | rustix::io::Errno::TOOBIG) => {
                loss.xattr = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
    loss.set_id |= meta.mode & 0o6000 != 0;
    file.set_permissions(fs::Permissions::from_mode(u32::from(meta.mode & mask)))?;
    let mtime = time_spec(meta.mtime);
    futimens(file, &mtime, &mtime)?;
    Ok(())
}

/// A file system that has no (more) hard links gets a copy.
fn hard_link(target: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(target, path) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::TooManyLinks | ErrorKind::Unsupported | ErrorKind::PermissionDenied
            ) =>
        {
            copy_file(target, path)
        }
        other => other,
    }
}

fn copy_file(target: &Path, path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(target)?;
    // Its mode may forbid reading it.
    fs::set_permissions(target, fs::Permissions::from_mode(0o600))?;
    let copied = fs::copy(target, path);
    fs::set_permissions(target, meta.permissions())?;
    copied?;
    let file = File::open(path)?;
    file.set_permissions(meta.permissions())?;
    file.set_modified(meta.modified()?)
}

fn set_times(path: &Path, time: Time) -> io::Result<()> {
    let time = time_spec(time);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

fn time_spec(time: Time) -> TimeSpec {
    TimeSpec::new(time.seconds, i64::from(time.nanos))
}

struct Notes<'a> {
    out: &'a Path,
    list: Vec<Note>,
}

impl Notes<'_> {
    fn add(&mut self, path: &Path, loss: &Loss) {
        for (lost, kind) in [
            (loss.device, NoteKind::Device),
            (loss.set_id, NoteKind::SetId),
            (loss.xattr, NoteKind::Xattr),
        ] {
            if lost {
                self.one(path, kind);
            }
        }
    }

    fn one(&mut self, path: &Path, kind: NoteKind) {
        match self.list.iter_mut().find(|note| note.kind == kind) {
            Some(note) => note.count += 1,
            None => self.list.push(Note {
                kind,
                count: 1,
                first: shown(path.strip_prefix(self.out).unwrap_or(path).as_os_str().as_bytes()),
            }),
        }
    }
}
