//! The functions of the fuzz targets, on good files with bytes changed: the same ones in every run.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

use dvrun::image::SquashfsOptions;

use super::Bench;
use super::good::corpus;
use super::squashfs::write;
use crate::support::checkout;
use crate::support::layers::*;

/// Values that mean something in one field or another.
const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'7', b'/'];

/// `bytes` with some of its first `reach` bytes changed, cut or said twice.
fn changed(bytes: &[u8], reach: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let reach = reach.min(bytes.len());
    for _ in 0..random.usize(1..8) {
        if bytes.is_empty() {
            break;
        }
        let at = random.usize(..reach.min(bytes.len()));
        match random.u8(..16) {
            0 => bytes.truncate(at),
            1 => {
                let end = (at + random.usize(1..600)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            2..7 => bytes[at] = TELLING[random.usize(..TELLING.len())],
            7..12 => bytes[at] ^= 1 << random.u8(..8),
            _ => bytes[at] = random.u8(..),
        }
    }
    bytes
}

/// Runs `target` on each seed as it is and changed, `rounds` times in all.
fn fuzz(target: fn(&[u8]), seeds: &[Vec<u8>], reach: usize, rounds: usize) {
    let mut random = fastrand::Rng::with_seed(1);
    for seed in seeds {
        target(seed);
    }
    for round in 0..rounds {
        let bytes = changed(&seeds[round % seeds.len()], reach, &mut random);
        let outcome = std::panic::catch_unwind(|| target(&bytes));
        if let Err(panic) = outcome {
            let kept = std::env::temp_dir().join(format!("dvrun-fuzzed-{}-{round}", std::process::id()));
            fs::write(&kept, &bytes).expect("the temporary folder is writable");
            eprintln!("the bytes are in {}", kept.display());
            std::panic::resume_unwind(panic);
        }
    }
}

/// The good stacks; not those whose size is what they are about.
fn stacks() -> Vec<Vec<Vec<Member>>> {
    corpus().into_iter().map(|(_, layers, _)| layers).collect()
}

#[test]
fn a_layers_index() {
    let seeds: Vec<Vec<u8>> = stacks()
        .iter()
        .flatten()
        .map(|layer| archive(layer))
        .filter(|archive| archive.len() < 100_000)
        .collect();
    fuzz(targets::tar_index, &seeds, usize::MAX, 4000);
}

#[test]
fn merging() {
    let mut random = fastrand::Rng::with_seed(2);
    let seeds: Vec<Vec<u8>> = (1..60).map(|size| (0..size * 4).map(|_| random.u8(..)).collect()).collect();
    fuzz(targets::merge, &seeds, usize::MAX, 600);
}

#[test]
fn a_squashfs() {
    let layers = vec![vec![
        folder("a"),
        folder("a/b"),
        file("a/text", "text ".repeat(3000)),
        file("a/small", "small").xattr("user.note", "n"),
        hard_link("a/again", "a/text"),
        symlink("link", "a/b"),
        device("null", 1, 3),
        sparse("sparse", Sparse::Pax10, 900_000, &[(500_000, b"here")]),
    ]];
    let mut seeds = Vec::new();
    for compression in ["none", "zstd:1", "gzip:1", "lz4", "xz:0"] {
        let bench = Bench::new();
        let options = SquashfsOptions {
            compression: compression.parse().expect("it is one"),
            block_size: 4096,
        };
        seeds.push(fs::read(write(&bench, &layers, &options)).expect("it was just written"));
    }
    fuzz(targets::squashfs, &seeds, usize::MAX, 1500);
}

#[test]
fn a_sif() {
    let seed = fs::read(checkout().join(Path::new("tests/corpora/apptainer-1.4.5.sif"))).expect("it is in the repository");
    // Beyond its descriptors lies what the targets above read.
    fuzz(targets::sif, &[seed], 4096 + 6 * 585, 1500);
}
