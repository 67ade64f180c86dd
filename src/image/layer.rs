//! One layer: inflated once, and while it goes by hashed, spooled and indexed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::changes::Changes;
use super::error::{EntryFault, Excess, ImageError, at, shown};
use super::inflate::{Ahead, Format};
use super::limits::{Budget, Limits};
use super::squashfs::SquashfsOptions;
use super::tar::{self, TarError};
use super::tree::{Data, Meta};
use crate::oci::{Digest, Hasher};

/// A layer as it came from a registry: its bytes are verified already.
#[derive(Clone, Debug)]
pub struct LayerBlob {
    pub path: PathBuf,
    /// Of the blob; names the layer in messages.
    pub digest: Digest,
    /// Of the uncompressed archive, from the image's configuration. `None`: the image does not say (schema 1).
    pub diff_id: Option<Digest>,
}

/// A layer's entries and the archive that their bodies lie in.
pub(super) struct Indexed {
    pub(super) changes: Changes,
    /// The uncompressed archive: an unnamed file in the scratch folder, or the blob itself if it was never compressed.
    pub(super) spool: File,
}

/// What a layer does to the ones below it. Paths are clean: no leading slash, no `.`, no `..`; the root's is empty.
#[derive(Debug)]
pub(super) enum Change {
    /// Hides this path of lower layers.
    Whiteout(Box<[u8]>),
    /// Hides everything that lower layers have in this folder.
    Opaque(Box<[u8]>),
    Add {
        path: Box<[u8]>,
        meta: Meta,
        content: Content,
    },
}

#[derive(Debug)]
pub(super) enum Content {
    Folder,
    File { size: u64, data: Data },
    HardLink(Box<[u8]>),
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Where Docker's AUFS driver kept the targets of hard links; layers of its time still have them.
pub(super) const AUFS: &[u8] = b".wh..wh.";

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The kernel's limit for one name.
pub(super) const NAME_MAX: usize = 255;
const CHUNK: usize = 256 << 10;

/// Reads a layer, whose blob is open as `file`, to its last byte.
pub(super) fn index(blob: &LayerBlob, file: File, scratch: &Path, budget: &Budget, cancelled: &AtomicBool) -> Result<Indexed, ImageError> {
    let layer = || blob.digest.to_string();
    let input = BufReader::with_capacity(CHUNK, file.try_clone().map_err(at("open", &blob.path))?);
    let (format, input) = Format::of(input).map_err(at("read", &blob.path))?;
    let (compressed, inflated): (bool, Box<dyn BufRead>) = match format {
        Format::Plain => (false, Box::new(input)),
        Format::Gzip => (true, Box::new(Ahead::new(|| Ok(flate2::bufread::MultiGzDecoder::new(input))))),
        Format::Zstd => (true, Box::new(Ahead::new(|| zstd::stream::read::Decoder::with_buffer(input)))),
        Format::Unknown(format) => return Err(ImageError::Compression { layer: layer(), format }),
    };
    let spool = if compressed {
        Some(tempfile::tempfile_in(scratch).map_err(at("make a scratch file in", scratch))?)
    } else {
        None
    };
    let tee = Tee {
        input: inflated,
        seen: 0,
        hasher: blob.diff_id.as_ref().map(|id| Hasher::new(id.algorithm())),
        spool,
        budget,
        cancelled,
        failure: None,
    };
    let mut reader = tar::Reader::new(tee, &budget.limits);
    let read = read_changes(&mut reader, budget);
    let entry = shown(reader.current());
    let mut tee = reader.into_inner();
    let changes = match read {
        Ok(changes) => {
            // What follows the end marker is no entry, but it is part of what was signed for.
            if let Err(source) = drain(&mut tee) {
                return Err(tee.explain(source, layer(), scratch));
            }
            changes
        }
        Err(Fault::Tar(TarError::Io(source))) => return Err(tee.explain(source, layer(), scratch)),
        Err(Fault::Tar(source)) => {
            return Err(ImageError::Tar {
                layer: layer(),
                entry,
                source,
            });
        }
        Err(Fault::Entry(reason)) => {
            return Err(ImageError::Entry {
                layer: layer(),
                entry,
                reason,
            });
        }
        Err(Fault::Excess(excess)) => return Err(ImageError::TooBig { layer: layer(), excess }),
    };
    if let (Some(expected), Some(hasher)) = (&blob.diff_id, tee.hasher) {
        let found = hasher.finish();
        if found != *expected {
            return Err(ImageError::Content {
                layer: layer(),
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
    }
    Ok(Indexed {
        changes,
        spool: tee.spool.unwrap_or(file),
    })
}

/// To the end of the stream.
fn drain(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        match input.fill_buf()?.len() {
            0 => return Ok(()),
            length => input.consume(length),
        }
    }
}

/// The uncompressed stream. What can be seen of it has been counted, hashed and spooled, each byte once and without a copy.
struct Tee<'a> {
    input: Box<dyn BufRead>,
    /// Of the input's buffer: what has been looked at already.
    seen: usize,
    hasher: Option<Hasher>,
    spool: Option<File>,
    budget: &'a Budget,
    cancelled: &'a AtomicBool,
    failure: Option<Failure>,
}

/// What made a read fail, if it was not the input.
enum Failure {
    Spool,
    Excess(Excess),
    Cancelled,
}

impl BufRead for Tee<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.seen == 0 {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(self.fail(Failure::Cancelled, io::Error::other("cancelled")));
            }
            let bytes = self.input.fill_buf()?;
            self.seen = bytes.len();
            if let Err(excess) = self.budget.unpacked(bytes.len() as u64) {
                return Err(self.fail(Failure::Excess(excess), io::Error::other(excess)));
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(bytes);
            }
            if let Some(Err(error)) = self.spool.as_mut().map(|spool| spool.write_all(bytes)) {
                return Err(self.fail(Failure::Spool, error));
            }
        }
        // The same bytes as before: nothing was consumed but through here.
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.seen = self.seen.saturating_sub(amount);
        self.input.consume(amount);
    }
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl Tee<'_> {
    fn fail(&mut self, failure: Failure, error: io::Error) -> io::Error {
        self.failure = Some(failure);
        error
    }

    fn explain(self, source: io::Error, layer: String, scratch: &Path) -> ImageError {
        match self.failure {
            None => ImageError::Inflate { layer, source },
            Some(Failure::Spool) => at("write a scratch file in", scratch)(source),
            Some(Failure::Excess(excess)) => ImageError::TooBig { layer, excess },
            Some(Failure::Cancelled) => ImageError::Cancelled { layer },
        }
    }
}

/// Why reading entries stopped.
enum Fault {
    Tar(TarError),
    Entry(EntryFault),
    Excess(Excess),
}

impl From<TarError> for Fault {
    fn from(error: TarError) -> Fault {
        Fault::Tar(error)
    }
}

impl From<EntryFault> for Fault {
    fn from(fault: EntryFault) -> Fault {
        Fault::Entry(fault)
    }
}

fn read_changes<R: BufRead>(reader: &mut tar::Reader<R>, budget: &Budget) -> Result<Changes, Fault> {
    let mut changes = Changes::default();
    while let Some(entry) = reader.next_entry()? {
        if let Some(change) = change(entry, &budget.limits)? {
            budget.entry(weight(&change)).map_err(Fault::Excess)?;
            changes.push(&change);
        }
    }
    Ok(changes)
}

/// What an entry means in a layer; `None` for the traces of AUFS that mean nothing.
fn change(entry: tar::Entry, limits: &Limits) -> Result<Option<Change>, EntryFault> {
    let path = clean(&entry.path, limits)?;
    let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], &path[..]),
    };
    let aufs = path.starts_with(AUFS) && path != OPAQUE;
    if parent.split(|&b| b == b'/').any(|part| part.starts_with(WHITEOUT)) && !aufs {
        return Err(EntryFault::BelowWhiteout);
    }
    if name == OPAQUE {
        return Ok(Some(Change::Opaque(parent.into())));
    }
    // A whiteout is known by its name alone: its entry may be a file, a hard link, anything.
    if let Some(hidden) = name.strip_prefix(WHITEOUT)
        && !aufs
    {
        if name.starts_with(AUFS) {
            return Ok(None);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryFault::NamelessWhiteout);
        }
        let hidden = if parent.is_empty() {
            hidden.to_vec()
        } else {
            [parent, b"/", hidden].concat()
        };
        return Ok(Some(Change::Whiteout(hidden.into())));
    }
    let content = match entry.content {
        tar::Content::Folder => Content::Folder,
        tar::Content::File { size, data } => Content::File { size, data },
        tar::Content::HardLink(target) => Content::HardLink(clean(&target, limits)?.into()),
        tar::Content::Symlink(target) if target.is_empty() => return Err(EntryFault::EmptyTarget),
        tar::Content::Symlink(target) => Content::Symlink(target.into()),
        tar::Content::CharDevice { major, minor } => Content::CharDevice { major, minor },
        tar::Content::BlockDevice { major, minor } => Content::BlockDevice { major, minor },
        tar::Content::Fifo => Content::Fifo,
    };
    if aufs && !matches!(content, Content::File { .. }) {
        return Ok(None);
    }
    if path.is_empty() && !matches!(content, Content::Folder) {
        return Err(EntryFault::RootIsNoFolder);
    }
    let meta = entry.meta;
    Ok(Some(Change::Add {
        path: path.into(),
        meta,
        content,
    }))
}

/// A stored name without what means nothing (leading and double slashes, `.`) and without `..`, as far as that stays inside.
pub(super) fn clean(name: &[u8], limits: &Limits) -> Result<Vec<u8>, EntryFault> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(EntryFault::Outside)?;
            }
            _ if part.len() > NAME_MAX => return Err(EntryFault::LongName),
            _ => parts.push(part),
        }
    }
    let path = parts.join(&b'/');
    if path.len() as u64 >= limits.path_bytes {
        return Err(EntryFault::LongPath(limits.path_bytes));
    }
    Ok(path)
}

/// About how many bytes of memory a change takes until it is written: as bytes of its layer, as an inode and a name of the tree, and while it is
/// written, for which a folder's files have their paths again, and those with holes the size of each block of a packed image: of a hole
/// there may be any number of blocks in a layer of a few bytes.
fn weight(change: &Change) -> u64 {
    let (fixed, variable) = match change {
        Change::Whiteout(path) | Change::Opaque(path) => (200, 2 * path.len()),
        Change::Add { path, meta, content } => {
            let attributes: usize = meta.xattrs.iter().map(|x| 40 + 2 * (x.name.len() + x.value.len())).sum();
            let content = match content {
                Content::File {
                    size,
                    data: Data::Sparse(parts),
                } => parts.len() * 48 + (size / u64::from(SquashfsOptions::default().block_size)) as usize * size_of::<u32>(),
                Content::HardLink(target) | Content::Symlink(target) => 2 * target.len(),
                _ => 0,
            };
            (300, 2 * path.len() + attributes + content)
        }
    };
    fixed + variable as u64
}
