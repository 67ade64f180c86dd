//! Blocks made large again, on any thread.

use std::cell::RefCell;

use super::SquashfsError;
use super::format::compressor;

/// How an image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Gzip,
    Xz,
    Lz4,
    Zstd,
}

/// More than any block of 1 MiB needs, and a limit to what a hostile one can ask for.
const XZ_MEMORY: u64 = 64 << 20;

thread_local! {
    /// Contexts are large: each thread keeps its own.
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    static GZIP: RefCell<Option<libdeflater::Decompressor>> = const { RefCell::new(None) };
}

impl Codec {
    pub(super) fn from_id(id: u16) -> Result<Codec, SquashfsError> {
        match id {
            compressor::GZIP => Ok(Codec::Gzip),
            compressor::XZ => Ok(Codec::Xz),
            compressor::LZ4 => Ok(Codec::Lz4),
            compressor::ZSTD => Ok(Codec::Zstd),
            compressor::LZMA => Err(SquashfsError::Compressor("lzma".to_owned())),
            compressor::LZO => Err(SquashfsError::Compressor("lzo".to_owned())),
            other => Err(SquashfsError::Compressor(format!("method {other}"))),
        }
    }

    /// The name that other tools use.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Gzip => "gzip",
            Codec::Xz => "xz",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// Decompresses `packed` into `out` and returns how many bytes that gave; `None` if it is damaged or does not fit.
    pub(super) fn unpack(self, packed: &[u8], out: &mut [u8]) -> Option<usize> {
        match self {
            Codec::Gzip => GZIP.with_borrow_mut(|slot| {
                let unpacker = slot.get_or_insert_with(libdeflater::Decompressor::new);
                unpacker.zlib_decompress(packed, out).ok()
            }),
            Codec::Zstd => ZSTD.with_borrow_mut(|slot| {
                if slot.is_none() {
                    *slot = zstd::bulk::Decompressor::new().ok();
                }
                slot.as_mut()?.decompress_to_buffer(packed, out).ok()
            }),
            Codec::Lz4 => lz4_flex::block::decompress_into(packed, out).ok(),
            Codec::Xz => xz(packed, out),
        }
    }
}

fn xz(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    use liblzma::stream::{Action, Status, Stream};

    let mut stream = Stream::new_stream_decoder(XZ_MEMORY, 0).ok()?;
    let end = stream.process(packed, out, Action::Finish).ok()?;
    (end == Status::StreamEnd).then(|| stream.total_out() as usize)
}
