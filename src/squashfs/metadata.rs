//! Metadata: blocks of 8 KiB, one behind another, addressed by a block's place and the offset in it.

use std::sync::Arc;

use super::format::{METADATA_BLOCK, METADATA_STORED};
use super::{Squashfs, SquashfsError};

/// A metadata block as it was before it was compressed.
pub(super) struct Block {
    bytes: Vec<u8>,
    /// Where the next one begins.
    next: u64,
}

impl Squashfs {
    fn metadata(&self, at: u64) -> Result<Arc<Block>, SquashfsError> {
        self.metadata.get(at, || {
            let mut header = [0; 2];
            self.source.read(at, &mut header)?;
            let header = u16::from_le_bytes(header);
            let length = usize::from(header & !METADATA_STORED);
            if length == 0 || length > METADATA_BLOCK {
                return Err(SquashfsError::damaged("a metadata block of impossible length", at));
            }
            let stored = self.source.bytes(at + 2, length)?;
            let bytes = if header & METADATA_STORED != 0 {
                stored
            } else {
                let mut bytes = vec![0; METADATA_BLOCK];
                let got = self.codec.unpack(&stored, &mut bytes);
                bytes.truncate(got.unwrap_or(0));
                bytes
            };
            if bytes.is_empty() {
                return Err(SquashfsError::damaged("a metadata block that cannot be decompressed", at));
            }
            let size = bytes.len() + 64;
            let next = at + 2 + length as u64;
            Ok((Block { bytes, next }, size))
        })
    }

    /// A reader of the metadata that begins at the block `block` and `offset` bytes in it.
    pub(super) fn cursor(&self, block: u64, offset: usize) -> Result<Cursor<'_>, SquashfsError> {
        let first = self.metadata(block)?;
        if offset > first.bytes.len() {
            return Err(SquashfsError::damaged("a reference past the end of its metadata block", block));
        }
        Ok(Cursor {
            image: self,
            at: block,
            block: first,
            offset,
        })
    }
}

/// A place in a stream of metadata blocks. Every step forward is one in the file as well, so no stream is without end.
pub(super) struct Cursor<'a> {
    image: &'a Squashfs,
    /// Of the block.
    at: u64,
    block: Arc<Block>,
    offset: usize,
}

impl Cursor<'_> {
    /// The place, for [`Squashfs::cursor`].
    pub(super) fn place(&self) -> (u64, usize) {
        (self.at, self.offset)
    }

    pub(super) fn read(&mut self, mut out: &mut [u8]) -> Result<(), SquashfsError> {
        while !out.is_empty() {
            let rest = &self.block.bytes[self.offset..];
            if rest.is_empty() {
                self.at = self.block.next;
                self.block = self.image.metadata(self.at)?;
                self.offset = 0;
                continue;
            }
            let step = rest.len().min(out.len());
            out[..step].copy_from_slice(&rest[..step]);
            self.offset += step;
            out = &mut out[step..];
        }
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], SquashfsError> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, SquashfsError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, SquashfsError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, SquashfsError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<Vec<u8>, SquashfsError> {
        let mut bytes = vec![0; length];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn skip(&mut self, mut length: u64) -> Result<(), SquashfsError> {
        let mut waste = [0; 256];
        while length > 0 {
            let step = length.min(waste.len() as u64);
            self.read(&mut waste[..step as usize])?;
            length -= step;
        }
        Ok(())
    }
}
