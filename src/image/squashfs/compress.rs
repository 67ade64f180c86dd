//! Blocks made smaller, one at a time, on any thread.

use std::cell::RefCell;
use std::io;

use crate::squashfs::format::{METADATA_BLOCK, compressor};

/// How blocks are compressed; the kernel must know it to mount the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    /// Every kernel; level 1 to 12 of libdeflate.
    Gzip(u8),
    /// Linux 4.14 and later; level 1 to 22.
    Zstd(u8),
    /// Linux 3.19 and later: large files that are read fast.
    Lz4,
    /// Linux 2.6.38 and later; level 0 to 9: small files that are written and read slowly.
    Xz(u8),
}

impl Default for Compression {
    fn default() -> Compression {
        Compression::Zstd(3)
    }
}

/// Why a text is no compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a compression (expected zstd, zstd:1 to zstd:22, gzip, gzip:1 to gzip:12, xz, xz:0 to xz:9, lz4, or none)")]
pub struct CompressionError(String);

impl std::str::FromStr for Compression {
    type Err = CompressionError;

    /// `NAME[:LEVEL]`; without a level, 3 for zstd, 5 for gzip (whose files are no larger than `mksquashfs` makes them), 6 for xz.
    fn from_str(text: &str) -> Result<Compression, CompressionError> {
        let wrong = || CompressionError(text.chars().take(40).collect());
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        match (name, level) {
            ("none", None) => Ok(Compression::None),
            ("lz4", None) => Ok(Compression::Lz4),
            ("xz", None) => Ok(Compression::Xz(6)),
            ("xz", Some(level @ 0..=9)) => Ok(Compression::Xz(level)),
            ("zstd", None) => Ok(Compression::default()),
            ("gzip", None) => Ok(Compression::Gzip(5)),
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
            Compression::None | Compression::Gzip(_) => compressor::GZIP,
            Compression::Zstd(_) => compressor::ZSTD,
            Compression::Lz4 => compressor::LZ4,
            Compression::Xz(_) => compressor::XZ,
        }
    }

    /// What stands behind the superblock: of lz4 always, of the others where the settings are not the usual ones.
    pub(super) fn options(self, block_size: u32) -> Option<Vec<u8>> {
        match self {
            Compression::None => None,
            // Level, window of 15 bits, strategy 1 (the default one); only displayed.
            Compression::Gzip(level) => {
                let level = u32::from(level.clamp(1, 9)).to_le_bytes();
                Some([&level[..], &15_u16.to_le_bytes(), &1_u16.to_le_bytes()].concat())
            }
            // Level; only displayed.
            Compression::Zstd(level) => Some(u32::from(level).to_le_bytes().to_vec()),
            // Version 1, the plain block format; no flags. Without them the kernel refuses the file.
            Compression::Lz4 => Some([1_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat()),
            // Size of the dictionary, no filters: the kernel allocates that much, and refuses blocks that need more.
            Compression::Xz(_) => Some([dictionary(block_size).to_le_bytes(), 0_u32.to_le_bytes()].concat()),
        }
    }

    /// Compresses `block`, of a file system with blocks of `block_size`, into `out`; whether that made it smaller. If not, `out` is
    /// left with anything.
    pub(super) fn compress(self, block: &[u8], block_size: u32, out: &mut Vec<u8>) -> io::Result<bool> {
        out.clear();
        let packed = match self {
            Compression::None => false,
            Compression::Gzip(level) => GZIP.with_borrow_mut(|slot| gzip(slot, level, block, out))?,
            Compression::Zstd(level) => ZSTD.with_borrow_mut(|slot| zstd(slot, level, block, out))?,
            Compression::Lz4 => lz4(block, out)?,
            Compression::Xz(level) => xz(level, dictionary(block_size), block, out)?,
        };
        Ok(packed && out.len() < block.len())
    }
}

/// Bytes of xz's dictionary: never less than a metadata block.
fn dictionary(block_size: u32) -> u32 {
    block_size.max(METADATA_BLOCK as u32)
}

fn gzip(slot: &mut Option<(u8, libdeflater::Compressor)>, level: u8, block: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
    let level_is = |at: i32| libdeflater::CompressionLvl::new(at).map_err(|_| io::Error::other("gzip has no such level"));
    if slot.as_ref().is_none_or(|(known, _)| *known != level) {
        *slot = Some((level, libdeflater::Compressor::new(level_is(i32::from(level))?)));
    }
    let (_, compressor) = slot.as_mut().expect("it was just made");
    out.resize(block.len(), 0);
    match compressor.zlib_compress(block, out) {
        Ok(length) => {
            out.truncate(length);
            Ok(true)
        }
        Err(libdeflater::CompressionError::InsufficientSpace) => Ok(false),
    }
}

fn zstd(slot: &mut Option<(u8, zstd::bulk::Compressor<'static>)>, level: u8, block: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
    if slot.as_ref().is_none_or(|(known, _)| *known != level) {
        *slot = Some((level, zstd::bulk::Compressor::new(i32::from(level))?));
    }
    let (_, compressor) = slot.as_mut().expect("it was just made");
    out.reserve(zstd::zstd_safe::compress_bound(block.len()));
    compressor.compress_to_buffer(block, out)?;
    Ok(true)
}

fn lz4(block: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
    out.resize(lz4_flex::block::get_maximum_output_size(block.len()), 0);
    let length = lz4_flex::block::compress_into(block, out).map_err(io::Error::other)?;
    out.truncate(length);
    Ok(true)
}

/// With CRC-32, the one check that the kernel's decoder knows.
fn xz(level: u8, dictionary: u32, block: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
    use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};

    let mut options = LzmaOptions::new_preset(level.into())?;
    options.dict_size(dictionary);
    let mut stream = Stream::new_stream_encoder(Filters::new().lzma2(&options), Check::Crc32)?;
    out.reserve(block.len());
    Ok(stream.process_vec(block, out, Action::Finish)? == Status::StreamEnd)
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
            ("gzip", Compression::Gzip(5)),
            ("xz", Compression::Xz(6)),
            ("xz:0", Compression::Xz(0)),
            ("lz4", Compression::Lz4),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "", "zip", "none:1", "zstd:", "zstd:0", "zstd:23", "gzip:13", "gzip:-1", "zstd:3:3", "zstd:300", "xz:10", "lz4:1",
        ] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
    /// What the kernel's decoders rely on: they have memory for one block, know no check but CRC-32, and want no more than they need.
    #[test]
    fn frames_are_such_as_the_kernel_reads() {
        let block: Vec<u8> = (0..131_072_u32).map(|n| (n / 7 % 50) as u8).collect();
        let mut out = Vec::new();
        for level in [1, 3, 19, 22] {
            assert!(Compression::Zstd(level).compress(&block, 131_072, &mut out).unwrap());
            // RFC 8878, 3.1.1: the frame tells its content's size, is one segment (so that the window is no larger), and has no checksum.
            let descriptor = out[4];
            assert_eq!(
                (out[..4] == [0x28, 0xb5, 0x2f, 0xfd], descriptor >> 5 & 1, descriptor >> 2 & 1),
                (true, 1, 0)
            );
            assert_eq!(zstd::zstd_safe::get_frame_content_size(&out).unwrap(), Some(131_072));
        }
        assert!(Compression::Xz(9).compress(&block, 131_072, &mut out).unwrap());
        // Stream flags (xz file format, 2.1.1.2), then the block header with LZMA2's dictionary: 10 is 128 KiB.
        assert_eq!(out[6..8], [0, 1]);
        assert_eq!(out[14..17], [0x21, 1, 10]);
        assert!(!Compression::None.compress(&block, 131_072, &mut out).unwrap());
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(5000).collect();
        for compression in [Compression::Gzip(6), Compression::Zstd(3), Compression::Lz4, Compression::Xz(6)] {
            assert!(!compression.compress(&noise, 131_072, &mut out).unwrap(), "{compression:?}");
        }
    }
}
