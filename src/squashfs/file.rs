//! File contents.

use std::ops::Range;
use std::sync::Arc;

use super::format::{DATA_STORED, FRAGMENT_ENTRY};
use super::inode::{File, Inode, Node};
use super::{Squashfs, SquashfsError};

/// The sizes of a file's blocks as they are stored, and where some of them begin.
pub(super) struct Layout {
    words: Vec<u32>,
    /// Of every [`STRIDE`]th block.
    starts: Vec<u64>,
}

const STRIDE: usize = 32;
/// Blocks of one file: 2 TiB at the usual block size. What has more is a hole that nobody meant.
const BLOCKS_MAX: u64 = 1 << 24;
/// Words of a list read at once, so that no more is allocated than is there.
const CHUNK: usize = 4096;

impl Layout {
    /// The place and the size word of block `index`.
    fn block(&self, index: usize) -> Option<(u64, u32)> {
        let word = *self.words.get(index)?;
        let first = index / STRIDE * STRIDE;
        let before: u64 = self.words[first..index].iter().map(|&word| stored(word)).sum();
        Some((self.starts[index / STRIDE] + before, word))
    }
}

/// Bytes of a block in the file.
fn stored(word: u32) -> u64 {
    u64::from(word & (DATA_STORED - 1))
}

impl Squashfs {
    /// Reads the content of `file` from `offset` on into `out`; returns how much there was: less than asked only at the
    /// file's end, nothing behind it or if it is no file.
    ///
    /// # Errors
    /// Blocks that cannot be read or decompressed, or have another length than they must.
    pub fn read(&self, file: &Inode, offset: u64, out: &mut [u8]) -> Result<usize, SquashfsError> {
        let Node::File(place) = &file.node else {
            return Ok(0);
        };
        let wanted = place.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let out = &mut out[..wanted];
        if wanted == 0 {
            return Ok(0);
        }
        let layout = self.layout(file, place)?;
        let block_size = u64::from(self.block_size);
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (index, inside) = (at / block_size, (at % block_size) as usize);
            let length = (place.size - index * block_size).min(block_size) as usize;
            let step = (length - inside).min(wanted - done);
            let target = &mut out[done..done + step];
            match usize::try_from(index).ok().and_then(|index| layout.block(index)) {
                Some((start, word)) => self.block(start, word, length, inside, target)?,
                None => self.tail(place, inside, target)?,
            }
            done += step;
        }
        Ok(wanted)
    }

    /// Which bytes of `file` are stored, in ascending parts of whole blocks; what is between and behind them are holes. Nothing if it
    /// is no file.
    ///
    /// # Errors
    /// A list of blocks that cannot be read.
    pub fn parts(&self, file: &Inode) -> Result<Vec<Range<u64>>, SquashfsError> {
        let Node::File(place) = &file.node else {
            return Ok(Vec::new());
        };
        let layout = self.layout(file, place)?;
        let block_size = u64::from(self.block_size);
        let mut parts: Vec<Range<u64>> = Vec::new();
        let mut add = |part: Range<u64>| match parts.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => parts.push(part),
        };
        for (index, _) in layout.words.iter().enumerate().filter(|(_, word)| stored(**word) > 0) {
            let start = index as u64 * block_size;
            add(start..(start + block_size).min(place.size));
        }
        // What is behind the blocks is in a fragment.
        let end = layout.words.len() as u64 * block_size;
        if end < place.size {
            add(end..place.size);
        }
        Ok(parts)
    }

    fn layout(&self, inode: &Inode, file: &File) -> Result<Arc<Layout>, SquashfsError> {
        self.layouts.get(inode.at, || {
            let block_size = u64::from(self.block_size);
            let count = match file.fragment {
                Some(_) => file.size / block_size,
                None => file.size.div_ceil(block_size),
            };
            if count > BLOCKS_MAX {
                return Err(SquashfsError::TooBig("a file with too many blocks"));
            }
            let count = count as usize;
            let (mut words, mut starts, mut at) = (Vec::new(), Vec::new(), file.start);
            let mut cursor = (count > 0).then(|| self.cursor(file.list.0, file.list.1)).transpose()?;
            while let Some(cursor) = cursor.as_mut().filter(|_| words.len() < count) {
                let bytes = cursor.bytes((count - words.len()).min(CHUNK) * 4)?;
                for word in bytes.chunks_exact(4) {
                    let word = u32::from_le_bytes(word.try_into().expect("a chunk of four"));
                    if stored(word) > block_size {
                        return Err(SquashfsError::damaged("a block that is too large", at));
                    }
                    if words.len() % STRIDE == 0 {
                        starts.push(at);
                    }
                    words.push(word);
                    at = at.checked_add(stored(word)).ok_or(SquashfsError::damaged("a file's blocks", at))?;
                }
            }
            let size = words.capacity() * 4 + starts.capacity() * 8 + 64;
            Ok((Layout { words, starts }, size))
        })
    }

    /// Fills `out` from the data block at `start`, which holds `length` bytes, from byte `inside` on.
    fn block(&self, start: u64, word: u32, length: usize, inside: usize, out: &mut [u8]) -> Result<(), SquashfsError> {
        let size = stored(word) as usize;
        if size == 0 {
            out.fill(0);
            return Ok(());
        }
        if word & DATA_STORED != 0 {
            if size != length {
                return Err(SquashfsError::damaged("a block of the wrong length", start));
            }
            return self.source.read(start + inside as u64, out);
        }
        // The kernel keeps whole blocks itself: what is asked for in one piece is not asked for again soon.
        if out.len() == length
            && let None = self.data.peek((start, word))
        {
            let packed = self.source.bytes(start, size)?;
            return match self.codec.unpack(&packed, out) {
                Some(got) if got == length => Ok(()),
                _ => Err(SquashfsError::damaged("a block that cannot be decompressed", start)),
            };
        }
        let block = self.unpacked(start, word, length)?;
        if block.len() != length {
            return Err(SquashfsError::damaged("a block of the wrong length", start));
        }
        out.copy_from_slice(&block[inside..inside + out.len()]);
        Ok(())
    }

    /// Fills `out` from the fragment of `file`, from byte `inside` of the file's part on.
    fn tail(&self, file: &File, inside: usize, out: &mut [u8]) -> Result<(), SquashfsError> {
        let table = self.tables.fragments;
        let Some((fragment, offset)) = file.fragment.filter(|(fragment, _)| *fragment < self.fragments) else {
            return Err(SquashfsError::damaged("a file whose end is in no fragment,", table));
        };
        let mut entry = self.record(table, u64::from(fragment), FRAGMENT_ENTRY)?;
        let (start, word) = (entry.u64()?, entry.u32()?);
        if word & !(DATA_STORED * 2 - 1) != 0 || stored(word) == 0 || stored(word) > u64::from(self.block_size) {
            return Err(SquashfsError::damaged("a fragment of impossible length", start));
        }
        let from = offset as usize + inside;
        let beyond = || SquashfsError::damaged("a fragment that is too short", start);
        let to = from.checked_add(out.len()).ok_or_else(beyond)?;
        if word & DATA_STORED != 0 {
            if to as u64 > stored(word) {
                return Err(beyond());
            }
            return self.source.read(start + from as u64, out);
        }
        let block = self.unpacked(start, word, self.block_size as usize)?;
        out.copy_from_slice(block.get(from..to).ok_or_else(beyond)?);
        Ok(())
    }

    /// A compressed block as it was, of `limit` bytes at most.
    fn unpacked(&self, start: u64, word: u32, limit: usize) -> Result<Arc<Vec<u8>>, SquashfsError> {
        self.data.get((start, word), || {
            let packed = self.source.bytes(start, stored(word) as usize)?;
            let mut bytes = vec![0; limit];
            let got = self.codec.unpack(&packed, &mut bytes);
            let got = got.ok_or(SquashfsError::damaged("a block that cannot be decompressed", start))?;
            bytes.truncate(got);
            let size = bytes.capacity() + 64;
            Ok((bytes, size))
        })
    }
}
