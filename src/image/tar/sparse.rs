//! Maps of sparse files: which parts of a file are stored, in the four ways GNU tar has had.

use super::TarError;
use super::header::number;
use crate::image::tree::{Few, Segment};

/// The most stored parts that one file may have: about 24 MiB of map.
const SEGMENTS: usize = 1 << 20;

/// Offsets and lengths as they are read, bounded (CVE-2025-58183).
#[derive(Default)]
pub(super) struct Map(Vec<(u64, u64)>);

impl Map {
    pub(super) fn push(&mut self, at: u64, length: u64) -> Result<(), TarError> {
        if self.0.len() == SEGMENTS {
            return Err(TarError::Sparse("it has more than a million parts"));
        }
        self.0.push((at, length));
        Ok(())
    }

    /// Old GNU: 24-byte slots in the header and in blocks after it; the first empty one ends the map.
    pub(super) fn push_slots(&mut self, slots: &[u8]) -> Result<(), TarError> {
        for slot in slots.chunks_exact(24) {
            if slot[0] == 0 || slot[12] == 0 {
                break;
            }
            let field = |bytes| number(bytes).and_then(|n| u64::try_from(n).ok()).ok_or(TarError::Number("sparse"));
            self.push(field(&slot[..12])?, field(&slot[12..])?)?;
        }
        Ok(())
    }

    /// The map against the file's size and what is stored, whose first byte is at `offset` of the archive.
    pub(super) fn finish(self, real_size: u64, stored: u64, offset: u64) -> Result<Few<Segment>, TarError> {
        let mut segments = Vec::with_capacity(self.0.len());
        let (mut end, mut used) = (0_u64, 0_u64);
        for (at, length) in self.0 {
            if at < end {
                return Err(TarError::Sparse("its parts overlap, or are out of order"));
            }
            end = at.checked_add(length).ok_or(TarError::Sparse("a part ends beyond all sizes"))?;
            if end > real_size {
                return Err(TarError::Sparse("a part ends behind the end of the file"));
            }
            if length > 0 {
                segments.push(Segment {
                    at,
                    length,
                    offset: offset + used,
                });
            }
            used += length;
        }
        if used != stored {
            return Err(TarError::Sparse("its parts are not as long as what is stored"));
        }
        Ok(segments.into_iter().collect())
    }
}
