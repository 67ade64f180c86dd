//! Seconds from a registry to a file or a folder: dvrun, whichever peers are installed, and the limit that the machine sets.
//!
//! ```text
//! cargo bench --bench convert -- [--megabytes 2000] [--times 3] [--enter "PREFIX"] [--only NAME]
//! ```
//!
//! `--enter` is put before a peer's command, for peers that live in another root; what they read and write is under
//! `target/bench-convert`, which has to be at the same path there. On a machine that others use too, compare processor seconds.

mod image;
mod limit;
mod programs;
mod registry;

use std::path::{Path, PathBuf};

use programs::{Measured, Peer};

struct Options {
    megabytes: u64,
    times: usize,
    enter: Vec<String>,
    only: Option<String>,
}

fn main() {
    let options = options();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-convert");
    let image = image::build(&folder, options.megabytes);
    println!(
        "image: {} layers, {} files, {} MB unpacked, {} MB packed",
        image.layers.len(),
        image.files,
        image.unpacked / 1_000_000,
        image.packed / 1_000_000
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let rates = limit::rates(&image);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("{cores} cores, load {}", load.trim());
    println!(
        "one thread, MB/s: inflate {:.0} (libdeflate {:.0}), SHA-256 {:.0}, zstd:3 {:.0}, gzip:5 {:.0}\n",
        rates.inflate, rates.libdeflate, rates.hash, rates.zstd, rates.gzip
    );
    let registry = registry::Registry::start(&folder, &image);
    let reference = format!("docker://127.0.0.1:{}/bench/image:1", registry.port);
    let work = folder.join("work");

    println!(
        "{:<34} {:>8} {:>8} {:>9} {:>9} {:>7}",
        "", "seconds", "cpu s", "MB", "peak MiB", "limit"
    );
    let wanted = |name: &str| options.only.as_ref().is_none_or(|only| name.contains(only));
    let dvrun = |name: &str, arguments: &[&str], limit: f64| {
        if !wanted(name) {
            return None;
        }
        let runs = (0..options.times).map(|_| programs::dvrun(&work, &reference, arguments));
        let best = runs.min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("at least one run");
        line(name, &best, Some(limit / cores as f64));
        Some(best)
    };
    let zstd = dvrun("dvrun SIF zstd:3", &["--format", "sif"], rates.seconds(&image, rates.zstd));
    let gzip = dvrun(
        "dvrun SIF gzip",
        &["--format", "sif", "--compression", "gzip"],
        rates.seconds(&image, rates.gzip),
    );
    let dir = dvrun("dvrun folder", &["--format", "dir"], rates.seconds(&image, f64::INFINITY));
    for peer in programs::PEERS {
        if !wanted(peer.name()) {
            continue;
        }
        let Some(measured) = programs::peer(peer, &options.enter, &work, &reference) else {
            println!("{:<34} not installed", peer.name());
            continue;
        };
        line(peer.name(), &measured, None);
        let ours = match peer {
            Peer::ApptainerPull => [("zstd:3", &zstd), ("gzip", &gzip)].to_vec(),
            Peer::ApptainerZstd => [("zstd:3", &zstd)].to_vec(),
            Peer::SkopeoUmoci => [("folder", &dir)].to_vec(),
        };
        for (name, ours) in ours {
            if let Some(ours) = ours {
                println!(
                    "    dvrun {name}: {:.1} times as fast, {:.1} times less processor, {:+.1} % size",
                    measured.seconds / ours.seconds,
                    measured.cpu / ours.cpu,
                    (ours.bytes as f64 / measured.bytes as f64 - 1.0) * 100.0
                );
            }
        }
    }
}

fn line(name: &str, measured: &Measured, limit: Option<f64>) {
    let share = limit.map_or(String::new(), |limit| format!("{:.0} %", limit / measured.seconds * 100.0));
    let peak = measured.peak.map_or(String::new(), |bytes| (bytes >> 20).to_string());
    println!(
        "{name:<34} {:>8.1} {:>8.1} {:>9} {peak:>9} {share:>7}",
        measured.seconds,
        measured.cpu,
        measured.bytes / 1_000_000
    );
}

fn options() -> Options {
    let mut options = Options {
        megabytes: 2000,
        times: 3,
        enter: Vec::new(),
        only: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            // From cargo.
            "--bench" => {}
            "--megabytes" => options.megabytes = value().parse().expect("a number"),
            "--times" => options.times = value().parse::<usize>().expect("a number").max(1),
            "--enter" => options.enter = value().split_whitespace().map(str::to_owned).collect(),
            "--only" => options.only = Some(value()),
            other => panic!("unknown option {other}"),
        }
    }
    options
}

/// The program under test, built in the same profile.
fn binary() -> PathBuf {
    PathBuf::from(std::env::var_os("DVRUN_BENCH_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_dvrun").into()))
}
