//! Metadata: streams cut into blocks of 8 KiB, each compressed, addressed by the block's place and the offset in it.

use std::io::{self, Write};

use super::SquashfsOptions;
use crate::squashfs::format::{METADATA_BLOCK, METADATA_STORED};

/// Where something is in a metadata stream: the block's start, counted in the compressed stream, and the offset inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) block: u32,
    pub(super) offset: u16,
}

impl Place {
    /// As references to inodes and attributes are stored.
    pub(super) fn reference(self) -> u64 {
        u64::from(self.block) << 16 | u64::from(self.offset)
    }
}

/// A metadata stream being written.
pub(super) struct Stream<W> {
    options: SquashfsOptions,
    out: W,
    /// Bytes of all blocks that are in `out`.
    written: u64,
    /// Never a whole block.
    open: Vec<u8>,
    /// Starts of the blocks written.
    starts: Vec<u64>,
}

impl<W: Write> Stream<W> {
    pub(super) fn new(options: SquashfsOptions, out: W) -> Stream<W> {
        Stream {
            options,
            out,
            written: 0,
            open: Vec::with_capacity(METADATA_BLOCK),
            starts: Vec::new(),
        }
    }

    /// Where the next byte goes.
    pub(super) fn place(&self) -> io::Result<Place> {
        Ok(Place {
            block: u32::try_from(self.written).map_err(|_| io::Error::other("more than 4 GiB of metadata"))?,
            offset: u16::try_from(self.open.len()).expect("a block is smaller"),
        })
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let fits = bytes.len().min(METADATA_BLOCK - self.open.len());
            self.open.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
            // At once, so that a place is never behind the end of a block.
            if self.open.len() == METADATA_BLOCK {
                self.close()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        self.starts.push(self.written);
        self.written += write_block(&mut self.out, self.options, &self.open)?;
        self.open.clear();
        Ok(())
    }

    /// What it was written to, how many bytes, and where among them its blocks start.
    pub(super) fn finish(mut self) -> io::Result<(W, u64, Vec<u64>)> {
        if !self.open.is_empty() {
            self.close()?;
        }
        Ok((self.out, self.written, self.starts))
    }
}

/// One block with its header; returns how many bytes that is.
fn write_block(out: &mut impl Write, options: SquashfsOptions, block: &[u8]) -> io::Result<u64> {
    let mut packed = Vec::new();
    let (body, stored) = match options.compression.compress(block, options.block_size, &mut packed)? {
        true => (&packed[..], 0),
        false => (block, METADATA_STORED),
    };
    let length = u16::try_from(body.len()).expect("a block is smaller");
    let whole = [&(length | stored).to_le_bytes(), body].concat();
    out.write_all(&whole)?;
    Ok(whole.len() as u64)
}

/// A lookup table that is written to `out`, at `at` of the file: records in metadata blocks, then the absolute places of these blocks.
/// Returns where the list of places begins, which is what the superblock names.
pub(super) fn table(options: SquashfsOptions, records: impl Iterator<Item: AsRef<[u8]>>, out: &mut impl Write, at: u64) -> io::Result<u64> {
    let mut stream = Stream::new(options, out);
    for record in records {
        stream.push(record.as_ref())?;
    }
    let (out, length, starts) = stream.finish()?;
    let list: Vec<u8> = starts.into_iter().flat_map(|start| (at + start).to_le_bytes()).collect();
    out.write_all(&list)?;
    Ok(at + length)
}
