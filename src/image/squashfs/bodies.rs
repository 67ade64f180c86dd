//! File contents: planned, compressed by all cores, written in order by one.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rayon::prelude::*;

use super::SquashfsOptions;
use crate::image::layers::Merged;
use crate::image::tree::{Body, Data, InodeId, Node, Segment};
use crate::oci::{Algorithm, Digest, Hasher};
use crate::squashfs::format::DATA_STORED;

/// Blocks of one file: 2 TiB at the usual block size. What has more is a hole that nobody meant.
const BLOCKS_MAX: u64 = 1 << 24;

/// Where a file's content lies.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    /// Of its first block; 0 if it has none.
    pub(super) start: u64,
    /// The size of each block as it is stored; 0 for a hole.
    pub(super) blocks: Vec<u32>,
    /// Fragment block and offset in it of a file that is smaller than a block.
    pub(super) fragment: Option<(u32, u32)>,
    /// Bytes in holes.
    pub(super) sparse: u64,
}

/// All contents.
pub(super) struct Bodies {
    pub(super) stored: Vec<Stored>,
    /// Inode → index into `stored`: the same content, the same index.
    pub(super) of: HashMap<InodeId, usize>,
    /// Of each fragment block: start and size.
    pub(super) fragments: Vec<(u64, u32)>,
    /// Where the next byte of the file goes.
    pub(super) end: u64,
}

/// Where the file system begins in the output file, and how blocks are made.
pub(super) struct Output<'a> {
    pub(super) file: &'a File,
    /// Where the file system begins.
    pub(super) base: u64,
    pub(super) options: SquashfsOptions,
}

/// A block to be compressed.
enum Job<'a> {
    /// One block of one content.
    Block { content: usize, body: &'a Body, block: u64 },
    /// Whole small files, one after another.
    Fragment(Vec<&'a Body>),
}

/// Writes every file's content, from `start` of the file system on.
pub(super) fn write(merged: &Merged, output: &Output, start: u64) -> io::Result<Bodies> {
    let (contents, of) = unique(merged)?;
    let mut stored = vec![Stored::default(); contents.len()];
    let (jobs, fragment_count) = plan(&contents, &mut stored, output.options.block_size)?;
    let mut bodies = Bodies {
        stored,
        of,
        fragments: Vec::with_capacity(fragment_count),
        end: start,
    };
    let pool = Pool::default();
    let ahead = 4 * rayon::current_num_threads().max(1) + 4;
    // What is written is brought to disk meanwhile, so that little of it is left to wait for at the end.
    let (nudge, nudged) = sync_channel::<()>(1);
    thread::scope(|threads| {
        let flusher = threads.spawn(move || nudged.iter().try_for_each(|()| output.file.sync_data()));
        // In place: this thread only writes, the pool's only compress.
        let written = rayon::in_place_scope(|scope| {
            let mut flushed = start;
            let mut waiting: VecDeque<(&Job, Receiver<io::Result<Packed>>)> = VecDeque::new();
            for job in &jobs {
                if waiting.len() == ahead {
                    settle(&mut waiting, &mut bodies, output, &pool)?;
                }
                if bodies.end - flushed >= FLUSH {
                    flushed = bodies.end;
                    // One that is still at it will come to these bytes the next time.
                    nudge.try_send(()).unwrap_or_default();
                }
                let (sender, receiver) = sync_channel(1);
                let pool = &pool;
                scope.spawn(move |_| {
                    // The receiver is gone when an earlier block failed: then nobody wants this one.
                    drop(sender.send(pack(merged, output, job, pool)));
                });
                waiting.push_back((job, receiver));
            }
            while !waiting.is_empty() {
                settle(&mut waiting, &mut bodies, output, &pool)?;
            }
            Ok(())
        });
        drop(nudge);
        let flushed = flusher.join().map_err(|_| io::Error::other("the thread that flushes panicked"))?;
        written.and(flushed)
    })?;
    Ok(bodies)
}

/// In bytes: how much is written before it is flushed.
const FLUSH: u64 = 32 << 20;

/// The distinct contents, in the order in which the layers hold them, and which inode has which.
fn unique(merged: &Merged) -> io::Result<(Vec<&Body>, HashMap<InodeId, usize>)> {
    let mut files: Vec<(InodeId, &Body)> = merged
        .tree
        .files()
        .filter_map(|(id, inode)| match &inode.node {
            Node::File(body) if body.size > 0 => Some((id, body)),
            _ => None,
        })
        .collect();
    files.sort_by_key(|(id, body)| (body.layer, first_offset(body), *id));
    let mut sizes: HashMap<u64, u32> = HashMap::new();
    for (_, body) in &files {
        *sizes.entry(body.size).or_default() += 1;
    }
    // A size that occurs once needs no hash to be known as different.
    let digests: Vec<Option<Digest>> = files
        .par_iter()
        .map(|(_, body)| (sizes[&body.size] > 1).then(|| digest(merged, body)).transpose())
        .collect::<io::Result<_>>()?;
    let mut contents: Vec<&Body> = Vec::new();
    let mut known: HashMap<(u64, Digest), usize> = HashMap::new();
    let mut of = HashMap::new();
    for ((id, body), digest) in files.into_iter().zip(digests) {
        let next = contents.len();
        let index = match digest {
            Some(digest) => *known.entry((body.size, digest)).or_insert(next),
            None => next,
        };
        if index == next {
            contents.push(body);
        }
        of.insert(id, index);
    }
    Ok((contents, of))
}

/// Of what is stored and where: two files with the same bytes but other holes are stored twice.
fn digest(merged: &Merged, body: &Body) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 128 << 10];
    for Segment { at, length, mut offset } in body.segments() {
        hasher.update(&at.to_le_bytes());
        hasher.update(&length.to_le_bytes());
        let end = offset + length;
        while offset < end {
            let step = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
            merged.read_exact_at(body, &mut buffer[..step], offset)?;
            hasher.update(&buffer[..step]);
            offset += step as u64;
        }
    }
    Ok(hasher.finish())
}

fn first_offset(body: &Body) -> u64 {
    match &body.data {
        Data::Plain(offset) => *offset,
        Data::Sparse(segments) => segments.first().map_or(0, |segment| segment.offset),
    }
}

/// Blocks of large files in order; between two files, a fragment block as soon as one is full.
fn plan<'a>(contents: &[&'a Body], stored: &mut [Stored], block_size: u32) -> io::Result<(Vec<Job<'a>>, usize)> {
    let mut jobs = Vec::new();
    let mut fragments = 0;
    let (mut tails, mut filled) = (Vec::new(), 0_u32);
    for (content, (body, stored)) in contents.iter().zip(stored).enumerate() {
        match u32::try_from(body.size) {
            Ok(size) if size < block_size => {
                if filled + size > block_size {
                    jobs.push(Job::Fragment(std::mem::take(&mut tails)));
                    (fragments, filled) = (fragments + 1, 0);
                }
                stored.fragment = Some((fragments, filled));
                tails.push(*body);
                filled += size;
            }
            _ => {
                let blocks = body.size.div_ceil(block_size.into());
                if blocks > BLOCKS_MAX {
                    return Err(io::Error::other(format!("a file of {} bytes is too large for SquashFS", body.size)));
                }
                jobs.extend((0..blocks).map(|block| Job::Block { content, body, block }));
            }
        }
    }
    if !tails.is_empty() {
        jobs.push(Job::Fragment(tails));
        fragments += 1;
    }
    Ok((jobs, fragments as usize))
}

/// A block as it is stored.
enum Packed {
    /// Nothing but zeros, this many.
    Hole(u64),
    Bytes {
        bytes: Vec<u8>,
        stored: bool,
    },
}

thread_local! {
    /// The block that a thread is at: fresh memory for each would cost more than copying does.
    static BLOCK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Buffers of blocks that have been written, for the next ones.
#[derive(Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

fn pack(merged: &Merged, output: &Output, job: &Job, pool: &Pool) -> io::Result<Packed> {
    BLOCK.with_borrow_mut(|buffer| {
        let block_size = output.options.block_size;
        buffer.resize(buffer.len().max(block_size as usize), 0);
        let block = match job {
            Job::Block { body, block, .. } => {
                let start = block * u64::from(block_size);
                let length = (body.size - start).min(block_size.into());
                let bytes = &mut buffer[..usize::try_from(length).expect("at most a block")];
                let data = read(merged, body, start, bytes)?;
                if !data || bytes.iter().all(|&byte| byte == 0) {
                    return Ok(Packed::Hole(length));
                }
                bytes
            }
            Job::Fragment(bodies) => {
                let mut filled = 0;
                for body in bodies {
                    let end = filled + usize::try_from(body.size).expect("less than a block");
                    read(merged, body, 0, &mut buffer[filled..end])?;
                    filled = end;
                }
                &mut buffer[..filled]
            }
        };
        let mut bytes = pool.take();
        let stored = !output.options.compression.compress(block, block_size, &mut bytes)?;
        if stored {
            bytes.clear();
            bytes.extend_from_slice(block);
        }
        Ok(Packed::Bytes { bytes, stored })
    })
}

/// Fills `bytes` with the file's content from `start` on; whether any of it is no hole.
fn read(merged: &Merged, body: &Body, start: u64, bytes: &mut [u8]) -> io::Result<bool> {
    let end = start + bytes.len() as u64;
    let mut data = false;
    if matches!(body.data, Data::Sparse(_)) {
        bytes.fill(0);
    }
    for Segment { at, length, offset } in body.segments_from(start).take_while(|segment| segment.at < end) {
        let (from, to) = (at.max(start), (at + length).min(end));
        if from < to {
            let place = |n: u64| usize::try_from(n - start).expect("within the buffer");
            merged.read_exact_at(body, &mut bytes[place(from)..place(to)], offset + (from - at))?;
            data = true;
        }
    }
    Ok(data)
}

/// Waits for the first block in the queue, and writes it.
fn settle(
    waiting: &mut VecDeque<(&Job, Receiver<io::Result<Packed>>)>,
    bodies: &mut Bodies,
    output: &Output,
    pool: &Pool,
) -> io::Result<()> {
    let Some((job, receiver)) = waiting.pop_front() else {
        return Ok(());
    };
    let packed = receiver.recv().map_err(io::Error::other)??;
    let place = bodies.end;
    let (word, hole) = match packed {
        Packed::Hole(length) => (0, length),
        Packed::Bytes { bytes, stored } => {
            output.file.write_all_at(&bytes, output.base + place)?;
            bodies.end += bytes.len() as u64;
            let length = u32::try_from(bytes.len()).expect("at most a block");
            pool.give(bytes);
            (length | if stored { DATA_STORED } else { 0 }, 0)
        }
    };
    match job {
        Job::Block { content, .. } => {
            let stored = &mut bodies.stored[*content];
            if stored.start == 0 {
                stored.start = place;
            }
            stored.sparse += hole;
            stored.blocks.push(word);
        }
        Job::Fragment(_) => bodies.fragments.push((place, word)),
    }
    Ok(())
}
