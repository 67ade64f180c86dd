//! Blocks made smaller, one at a time, on any thread.

use std::cell::RefCell;
use std::io;

/// How blocks are compressed; the kernel must know it to mount the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    /// Every kernel; level 1 to 12 of libdeflate.
    Gzip(u8),
    /// Linux 4.14 and later; level 1 to 22.
    Zstd(u8),
}

impl Default for Compression {
    fn default() -> Compression {
        Compression::Zstd(3)
    }
}

/// Why a text is no compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a compression (expected zstd, zstd:1 to zstd:22, gzip, gzip:1 to gzip:12, or none)")]
pub struct CompressionError(String);

impl std::str::FromStr for Compression {
    type Err = CompressionError;

    /// `NAME[:LEVEL]`; without a level, 3 for zstd and 6 for gzip.
    fn from_str(text: &str) -> Result<Compression, CompressionError> {
        let wrong = || CompressionError(text.chars().take(40).collect());
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        match (name, level) {
            ("none", None) => Ok(Compression::None),
            ("zstd", None) => Ok(Compression::default()),
            ("gzip", None) => Ok(Compression::Gzip(6)),
            ("zstd", Some(level @ 1..=22)) => Ok(Compression::Zstd(level)),
            ("gzip", Some(level @ 1..=12)) => Ok(Compression::Gzip(level)),
            _ => Err(wrong()),
        }
    }
}

thread_local! {
    /// Contexts are large: each thread keeps the one it used last.
    static ZSTD: RefCell<Option<(u8, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(None) };
    static GZIP: RefCell<Option<(u8, libdeflater::Compressor)>> = const { RefCell::new(None) };
}

impl Compression {
    /// The number in the superblock. A file without compression has to name one too.
    pub(super) fn id(self) -> u16 {
        match self {
            Compression::None | Compression::Gzip(_) => 1,
            Compression::Zstd(_) => 6,
        }
    }

    /// What stands behind the superblock when the settings are not the compressor's usual ones; readers only display it.
    pub(super) fn options(self) -> Option<Vec<u8>> {
        match self {
            Compression::None => None,
            // Level, window of 15 bits, strategy 1 (the default one).
            Compression::Gzip(level) => {
                let level = u32::from(level.clamp(1, 9)).to_le_bytes();
                Some([&level[..], &15_u16.to_le_bytes(), &1_u16.to_le_bytes()].concat())
            }
            Compression::Zstd(level) => Some(u32::from(level).to_le_bytes().to_vec()),
        }
    }

    /// The block compressed, or `None` if that would not make it smaller.
    pub(super) fn compress(self, block: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let packed = match self {
            Compression::None => return Ok(None),
            Compression::Gzip(level) => GZIP.with_borrow_mut(|slot| gzip(slot, level, block))?,
            Compression::Zstd(level) => ZSTD.with_borrow_mut(|slot| zstd(slot, level, block))?,
        };
        Ok(packed.filter(|packed| packed.len() < block.len()))
    }
}

fn gzip(slot: &mut Option<(u8, libdeflater::Compressor)>, level: u8, block: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let level_is = |at: i32| libdeflater::CompressionLvl::new(at).map_err(|_| io::Error::other("gzip has no such level"));
    if slot.as_ref().is_none_or(|(known, _)| *known != level) {
        *slot = Some((level, libdeflater::Compressor::new(level_is(i32::from(level))?)));
    }
    let (_, compressor) = slot.as_mut().expect("it was just made");
    let mut packed = vec![0; block.len()];
    match compressor.zlib_compress(block, &mut packed) {
        Ok(length) => {
            packed.truncate(length);
            Ok(Some(packed))
        }
        Err(libdeflater::CompressionError::InsufficientSpace) => Ok(None),
    }
}

fn zstd(slot: &mut Option<(u8, zstd::bulk::Compressor<'static>)>, level: u8, block: &[u8]) -> io::Result<Option<Vec<u8>>> {
    if slot.as_ref().is_none_or(|(known, _)| *known != level) {
        *slot = Some((level, zstd::bulk::Compressor::new(i32::from(level))?));
    }
    let (_, compressor) = slot.as_mut().expect("it was just made");
    compressor.compress(block).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_levels_are_read_and_nothing_else() {
        for (text, expected) in [
            ("none", Compression::None),
            ("zstd", Compression::Zstd(3)),
            ("zstd:22", Compression::Zstd(22)),
            ("gzip:12", Compression::Gzip(12)),
            ("gzip", Compression::Gzip(6)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "", "zip", "none:1", "zstd:", "zstd:0", "zstd:23", "gzip:13", "gzip:-1", "zstd:3:3", "zstd:300",
        ] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
