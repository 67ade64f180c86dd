//! File contents: compressed by all cores, written in order by one.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rayon::Scope;

use super::SquashfsOptions;
use super::contents::{Contents, distinct};
use crate::image::layers::Merged;
use crate::image::tree::{Body, Data, InodeId, Segment};
use crate::squashfs::format::DATA_STORED;

/// Blocks of one file: 2 TiB at the usual block size. What has more is a hole that nobody meant.
const BLOCKS_MAX: u64 = 1 << 24;

/// All contents.
pub(super) struct Bodies {
    contents: Contents,
    /// Of each content.
    places: Vec<Place>,
    large: Vec<Large>,
    /// The size of each block of the large ones as it is stored; 0 for a hole.
    blocks: Vec<u32>,
    /// Of each fragment block: start and size.
    pub(super) fragments: Vec<(u64, u32)>,
    /// Where the next byte of the file goes.
    pub(super) end: u64,
}

/// Where a content is.
#[derive(Clone, Copy)]
enum Place {
    /// Of a file that is smaller than a block: the fragment block, and where in it.
    Fragment { block: u32, offset: u32 },
    /// Of any other: index into [`Bodies::large`].
    Blocks(u32),
}

/// A content of whole blocks.
#[derive(Default)]
struct Large {
    start: u64,
    sparse: u64,
    /// Which of [`Bodies::blocks`].
    blocks: Range<usize>,
}

/// Where a file's content lies.
#[derive(Default)]
pub(super) struct Stored<'a> {
    /// Of its first block; 0 if it has none.
    pub(super) start: u64,
    /// The size of each block as it is stored; 0 for a hole.
    pub(super) blocks: &'a [u32],
    /// Fragment block and offset in it of a file that is smaller than a block.
    pub(super) fragment: Option<(u32, u32)>,
    /// Bytes in holes.
    pub(super) sparse: u64,
}

impl Bodies {
    /// What is stored of an inode; of one without content, nothing.
    pub(super) fn stored(&self, id: InodeId) -> Stored<'_> {
        match self.contents.of(id).map(|content| self.places[content]) {
            None => Stored::default(),
            Some(Place::Fragment { block, offset }) => Stored {
                fragment: Some((block, offset)),
                ..Stored::default()
            },
            Some(Place::Blocks(at)) => {
                let Large { start, sparse, blocks } = &self.large[at as usize];
                Stored {
                    start: *start,
                    blocks: &self.blocks[blocks.clone()],
                    fragment: None,
                    sparse: *sparse,
                }
            }
        }
    }
}

/// Where the file system begins in the output file, and how blocks are made.
pub(super) struct Output<'a> {
    pub(super) file: &'a File,
    /// Where the file system begins.
    pub(super) base: u64,
    pub(super) options: SquashfsOptions,
}

/// What is written next.
enum Coming {
    /// A block, as soon as it is compressed.
    Packed(Receiver<io::Result<Packed>>),
    /// Blocks of zeros, this many bytes: nobody has to look at them.
    Hole(u64),
}

/// A block to be compressed.
enum Job<'a> {
    /// One block of a large file.
    Block { body: &'a Body, block: u64 },
    /// Whole small files, one after another.
    Fragment(Vec<&'a Body>),
}

/// What a block that is being compressed belongs to.
enum For {
    /// Index into [`Bodies::large`].
    Large(usize),
    Fragment,
}

/// Writes every file's content, from `start` of the file system on.
pub(super) fn write(merged: &Merged, output: &Output, start: u64) -> io::Result<Bodies> {
    let (contents, firsts) = distinct(merged)?;
    let files = || firsts.iter().filter_map(|&id| merged.tree.body(id));
    let block_size = output.options.block_size;
    if let Some(body) = files().find(|body| body.size.div_ceil(block_size.into()) > BLOCKS_MAX) {
        return Err(io::Error::other(format!("a file of {} bytes is too large for SquashFS", body.size)));
    }
    let pool = Pool::default();
    // What is written is brought to disk meanwhile, so that little of it is left to wait for at the end.
    let (nudge, nudged) = sync_channel::<()>(1);
    thread::scope(|threads| {
        let flusher = threads.spawn(move || nudged.iter().try_for_each(|()| output.file.sync_data()));
        let mut writer = Writer {
            merged,
            output,
            pool: &pool,
            waiting: VecDeque::new(),
            flushed: start,
            nudge,
            bodies: Bodies {
                contents,
                places: Vec::with_capacity(firsts.len()),
                large: Vec::new(),
                blocks: Vec::new(),
                fragments: Vec::new(),
                end: start,
            },
        };
        // In place: this thread only writes, the pool's only compress.
        let written = rayon::in_place_scope(|scope| writer.all(scope, files()));
        let Writer { bodies, nudge, .. } = writer;
        drop(nudge);
        let flushed = flusher.join().map_err(|_| io::Error::other("the thread that flushes panicked"))?;
        written.and(flushed).map(|()| bodies)
    })
}

/// In bytes: how much is written before it is flushed.
const FLUSH: u64 = 32 << 20;

/// Blocks on their way: compressed in any order, written in one.
struct Writer<'a> {
    merged: &'a Merged,
    output: &'a Output<'a>,
    pool: &'a Pool,
    waiting: VecDeque<(For, Coming)>,
    /// Up to where the file has been flushed.
    flushed: u64,
    nudge: SyncSender<()>,
    bodies: Bodies,
}

impl<'a> Writer<'a> {
    /// Blocks of large files in order; between two files, a fragment block as soon as one is full.
    fn all(&mut self, scope: &Scope<'a>, files: impl Iterator<Item = &'a Body>) -> io::Result<()> {
        let block_size = self.output.options.block_size;
        let (mut tails, mut filled, mut fragments) = (Vec::new(), 0_u32, 0_u32);
        for body in files {
            match u32::try_from(body.size) {
                Ok(size) if size < block_size => {
                    if filled + size > block_size {
                        self.submit(scope, For::Fragment, Job::Fragment(std::mem::take(&mut tails)))?;
                        (fragments, filled) = (fragments + 1, 0);
                    }
                    self.bodies.places.push(Place::Fragment {
                        block: fragments,
                        offset: filled,
                    });
                    tails.push(body);
                    filled += size;
                }
                _ => {
                    let large = self.bodies.large.len();
                    let place = u32::try_from(large).expect("fewer than inodes");
                    self.bodies.places.push(Place::Blocks(place));
                    self.bodies.large.push(Large::default());
                    let (mut block, blocks) = (0, body.size.div_ceil(block_size.into()));
                    while block < blocks {
                        match body.hole_from(block * u64::from(block_size), block_size) {
                            None => {
                                self.submit(scope, For::Large(large), Job::Block { body, block })?;
                                block += 1;
                            }
                            Some(hole) => {
                                self.push(For::Large(large), Coming::Hole(hole))?;
                                block += hole.div_ceil(block_size.into());
                            }
                        }
                    }
                }
            }
        }
        if !tails.is_empty() {
            self.submit(scope, For::Fragment, Job::Fragment(tails))?;
        }
        while !self.waiting.is_empty() {
            self.settle()?;
        }
        Ok(())
    }

    fn push(&mut self, owner: For, coming: Coming) -> io::Result<()> {
        if self.waiting.len() == 4 * rayon::current_num_threads().max(1) + 4 {
            self.settle()?;
        }
        self.waiting.push_back((owner, coming));
        Ok(())
    }

    fn submit(&mut self, scope: &Scope<'a>, owner: For, job: Job<'a>) -> io::Result<()> {
        if self.bodies.end - self.flushed >= FLUSH {
            self.flushed = self.bodies.end;
            // One that is still at it will come to these bytes the next time.
            self.nudge.try_send(()).unwrap_or_default();
        }
        let (sender, receiver) = sync_channel(1);
        let (merged, output, pool) = (self.merged, self.output, self.pool);
        scope.spawn(move |_| {
            // The receiver is gone when an earlier block failed: then nobody wants this one.
            drop(sender.send(pack(merged, output, &job, pool)));
        });
        self.push(owner, Coming::Packed(receiver))
    }

    /// Waits for the first block in the queue, and writes it.
    fn settle(&mut self) -> io::Result<()> {
        let Some((owner, coming)) = self.waiting.pop_front() else {
            return Ok(());
        };
        let bodies = &mut self.bodies;
        let place = bodies.end;
        let packed = match coming {
            Coming::Packed(receiver) => receiver.recv().map_err(io::Error::other)??,
            Coming::Hole(length) => Packed::Hole(length),
        };
        let (word, hole) = match packed {
            Packed::Hole(length) => (0, length),
            Packed::Bytes { bytes, stored } => {
                self.output.file.write_all_at(&bytes, self.output.base + place)?;
                bodies.end += bytes.len() as u64;
                let length = u32::try_from(bytes.len()).expect("at most a block");
                self.pool.give(bytes);
                (length | if stored { DATA_STORED } else { 0 }, 0)
            }
        };
        match owner {
            For::Large(at) => {
                let large = &mut bodies.large[at];
                if large.blocks.is_empty() {
                    (large.start, large.blocks.start) = (place, bodies.blocks.len());
                }
                let blocks = hole.div_ceil(self.output.options.block_size.into()).max(1);
                bodies
                    .blocks
                    .extend(std::iter::repeat_n(word, usize::try_from(blocks).map_err(io::Error::other)?));
                large.blocks.end = bodies.blocks.len();
                large.sparse += hole;
            }
            For::Fragment => bodies.fragments.push((place, word)),
        }
        Ok(())
    }
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
            Job::Block { body, block } => {
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
