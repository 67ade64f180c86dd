//! Metadata: streams cut into blocks of 8 KiB, each compressed, addressed by the block's place and the offset in it.

use std::io;

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

/// A metadata stream being written, in memory: metadata is small beside what it describes.
pub(super) struct Stream {
    options: SquashfsOptions,
    written: Vec<u8>,
    /// Never a whole block.
    open: Vec<u8>,
    /// Starts of the blocks written.
    starts: Vec<u64>,
}

impl Stream {
    pub(super) fn new(options: SquashfsOptions) -> Stream {
        Stream {
            options,
            written: Vec::new(),
            open: Vec::with_capacity(METADATA_BLOCK),
            starts: Vec::new(),
        }
    }

    /// Where the next byte goes.
    pub(super) fn place(&self) -> io::Result<Place> {
        Ok(Place {
            block: u32::try_from(self.written.len()).map_err(|_| io::Error::other("more than 4 GiB of metadata"))?,
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
        self.starts.push(self.written.len() as u64);
        push_block(&mut self.written, self.options, &self.open)?;
        self.open.clear();
        Ok(())
    }

    /// The stream as it is stored, and where its blocks start in it.
    pub(super) fn finish(mut self) -> io::Result<(Vec<u8>, Vec<u64>)> {
        if !self.open.is_empty() {
            self.close()?;
        }
        Ok((self.written, self.starts))
    }
}

/// One block with its header.
fn push_block(out: &mut Vec<u8>, options: SquashfsOptions, block: &[u8]) -> io::Result<()> {
    let mut packed = Vec::new();
    let (body, stored) = match options.compression.compress(block, options.block_size, &mut packed)? {
        true => (&packed[..], 0),
        false => (block, METADATA_STORED),
    };
    let length = u16::try_from(body.len()).expect("a block is smaller");
    out.extend((length | stored).to_le_bytes());
    out.extend(body);
    Ok(())
}

/// A lookup table at `at` of the file: records in metadata blocks, then the absolute places of these blocks. Returns the bytes
/// and where the list of places begins, which is what the superblock names.
pub(super) fn table(options: SquashfsOptions, records: impl Iterator<Item: AsRef<[u8]>>, at: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut stream = Stream::new(options);
    for record in records {
        stream.push(record.as_ref())?;
    }
    let (mut bytes, starts) = stream.finish()?;
    let list = at + bytes.len() as u64;
    for start in starts {
        bytes.extend((at + start).to_le_bytes());
    }
    Ok((bytes, list))
}
