//! What one thread of this machine does with this image's bytes: no program can be faster than that, divided by the cores.

use std::io::Read;

use dvrun::oci::Digest;
use nix::sys::resource::UsageWho;

use super::image::{self, Image};
use super::programs::processor;

/// Megabytes of unpacked data a second, one thread each.
pub struct Rates {
    pub inflate: f64,
    pub libdeflate: f64,
    pub hash: f64,
    pub zstd: f64,
    pub gzip: f64,
}

const BLOCK: usize = 128 << 10;
/// Of each layer.
const SAMPLE: usize = 48 << 20;

pub fn rates(image: &Image) -> Rates {
    let [mut inflate, mut libdeflate, mut hash, mut zstd, mut gzip] = [0.0; 5];
    let mut bytes = 0;
    let mut all = 0;
    for layer in &image.layers {
        let packed = image::read(layer).expect("the layout is whole");
        let mut whole = Vec::new();
        inflate += seconds(|| {
            let mut decoder = flate2::read::GzDecoder::new(&packed[..]);
            // A pass without the cost of memory that nobody has touched yet.
            whole.resize(SAMPLE, 0);
            let mut filled = 0;
            while filled < whole.len() {
                match decoder.read(&mut whole[filled..]).expect("it was packed here") {
                    0 => break,
                    more => filled += more,
                }
            }
            whole.truncate(filled);
        });
        bytes += whole.len();
        hash += seconds(|| drop(Digest::sha256(&whole)));
        let mut compressor = zstd::bulk::Compressor::new(3).expect("there is such a level");
        let mut out = vec![0; 2 * BLOCK];
        zstd += seconds(|| {
            for block in whole.chunks(BLOCK) {
                compressor.compress_to_buffer(block, &mut out[..]).expect("it has room");
            }
        });
        let level = libdeflater::CompressionLvl::new(5).expect("there is such a level");
        let mut compressor = libdeflater::Compressor::new(level);
        gzip += seconds(|| {
            for block in whole.chunks(BLOCK) {
                compressor.zlib_compress(block, &mut out).expect("it has room");
            }
        });
        let size = u32::from_le_bytes(packed[packed.len() - 4..].try_into().expect("four bytes")) as usize;
        let mut unpacked = vec![1; size];
        libdeflate += seconds(|| {
            libdeflater::Decompressor::new()
                .gzip_decompress(&packed, &mut unpacked)
                .expect("it was packed here");
        });
        all += size;
    }
    let rate = |bytes: usize, seconds: f64| bytes as f64 / 1e6 / seconds;
    Rates {
        inflate: rate(bytes, inflate),
        libdeflate: rate(all, libdeflate),
        hash: rate(bytes, hash),
        zstd: rate(bytes, zstd),
        gzip: rate(bytes, gzip),
    }
}

impl Rates {
    /// Of one core: the blobs and the layers hashed, the layers inflated, and all of it compressed.
    pub fn seconds(&self, image: &Image, compress: f64) -> f64 {
        let (unpacked, packed) = (image.unpacked as f64 / 1e6, image.packed as f64 / 1e6);
        (unpacked + packed) / self.hash + unpacked / self.inflate + unpacked / compress
    }
}

/// Of the processor, so that others on the machine do not make the limit look lower than it is.
fn seconds(work: impl FnOnce()) -> f64 {
    let before = processor(UsageWho::RUSAGE_THREAD);
    work();
    processor(UsageWho::RUSAGE_THREAD) - before
}
