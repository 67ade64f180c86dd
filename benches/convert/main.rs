//! Seconds from a registry to a file or a folder: dvrun, whichever peers are installed, and the limit that the machine sets.
//!
//! ```text
//! cargo bench --bench convert -- [--times 3] [--enter "PREFIX"] [--only NAME]…
//! cargo bench --bench convert -- --sizes 100,500,2000,8000
//! ```
//!
//! The first is about an image of Debian's and PyPI's packages, as [`image::of_packages`] makes it; `--enter` is put before a peer's
//! command, for peers that live in another root; what they read and write is under `target/bench-convert`, which has to be at the
//! same path there. The second is dvrun alone, about generated images of so many megabytes, from a layout on disk: whether time grows with
//! bytes, and memory does not. On a machine that others use too, compare processor seconds.

mod generated;
mod image;
mod limit;
mod programs;
mod registry;

use std::path::{Path, PathBuf};

use image::Image;
use limit::Rates;
use programs::{Measured, Ours, PEERS};
use registry::{Registry, Scheme};

struct Options {
    sizes: Vec<u64>,
    times: usize,
    enter: Vec<String>,
    /// Parts of names; empty for all.
    only: Vec<String>,
}

/// In the registry.
const NAME: &str = "bench/image:1";

fn main() {
    let options = options();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-convert");
    match options.sizes[..] {
        [] => compare(&options, &folder),
        _ => grow(&options, &folder),
    }
}

/// dvrun and its peers, about an image of packages.
fn compare(options: &Options, folder: &Path) {
    let image = image::of_packages(folder);
    describe(&image);
    let (rates, cores) = machine(&image);
    let [registry, secure] = [Scheme::Http, Scheme::Https].map(|scheme| Registry::start(folder, &image, scheme));
    let [host, secure_host] = [&registry, &secure].map(|registry| format!("127.0.0.1:{}", registry.port));
    let reference = format!("docker://{host}/{NAME}");
    let work = folder.join("work");
    programs::clear(&work);
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()));

    head();
    let kinds = [
        (Ours::Zstd, "dvrun SIF zstd:3", &["--format", "sif"][..], rates.zstd),
        (
            Ours::Gzip,
            "dvrun SIF gzip",
            &["--format", "sif", "--compression", "gzip"],
            rates.gzip,
        ),
        (Ours::Folder, "dvrun folder", &["--format", "dir"], f64::INFINITY),
    ];
    let mut ours: Vec<(Ours, &str, Measured)> = Vec::new();
    for (kind, name, arguments, compress) in kinds.into_iter().filter(|kind| wanted(kind.1)) {
        let best = best(options.times, &work, &reference, arguments);
        line(name, &best, Some(rates.seconds(&image, compress) / cores));
        ours.push((kind, name, best));
    }
    for peer in PEERS.iter().filter(|peer| wanted(peer.name)) {
        let measured = match programs::peer(peer, &options.enter, &work, (&host, &secure_host), NAME) {
            Ok(measured) => measured,
            Err(why) => {
                println!("{:<34} {why}", peer.name);
                continue;
            }
        };
        line(peer.name, &measured, None);
        for (_, name, ours) in ours.iter().filter(|(kind, ..)| peer.against.contains(kind)) {
            println!(
                "    {name}: {:.1} times as fast, {:.1} times less processor, {:+.1} % size",
                measured.seconds / ours.seconds,
                measured.cpu / ours.cpu,
                (ours.bytes as f64 / measured.bytes as f64 - 1.0) * 100.0
            );
        }
    }
    programs::clear(&work);
}

/// dvrun alone, about images of several sizes.
fn grow(options: &Options, folder: &Path) {
    let work = folder.join("work");
    programs::clear(&work);
    for &megabytes in &options.sizes {
        let image = image::of_size(folder, megabytes);
        describe(&image);
        let (rates, cores) = machine(&image);
        let reference = format!("oci:{}:1", image.layout.display());
        head();
        let best = best(options.times, &work, &reference, &["--format", "sif"]);
        line("dvrun SIF zstd:3", &best, Some(rates.seconds(&image, rates.zstd) / cores));
        println!("    {:.2} ns a byte\n", best.seconds * 1e9 / image.unpacked as f64);
    }
    programs::clear(&work);
}

fn describe(image: &Image) {
    println!(
        "image: {} layers, {} files, {} MB unpacked, {} MB packed",
        image.layers.len(),
        image.files,
        image.unpacked / 1_000_000,
        image.packed / 1_000_000
    );
}

/// What one core does with this image, and how many there are.
fn machine(image: &Image) -> (Rates, f64) {
    let rates = limit::rates(image);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("{cores} cores, load {}", load.trim());
    println!(
        "one thread, MB/s: inflate {:.0} (libdeflate {:.0}), SHA-256 {:.0}, zstd:3 {:.0}, gzip:5 {:.0}\n",
        rates.inflate, rates.libdeflate, rates.hash, rates.zstd, rates.gzip
    );
    (rates, cores as f64)
}

fn best(times: usize, work: &Path, reference: &str, arguments: &[&str]) -> Measured {
    let runs = (0..times).map(|_| programs::dvrun(work, reference, arguments));
    runs.min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("at least one run")
}

fn head() {
    println!(
        "{:<34} {:>8} {:>8} {:>9} {:>9} {:>7}",
        "", "seconds", "cpu s", "MB", "peak MiB", "limit"
    );
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
        sizes: Vec::new(),
        times: 3,
        enter: Vec::new(),
        only: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            // From cargo.
            "--bench" => {}
            "--sizes" => options.sizes = value().split(',').map(|size| size.parse().expect("megabytes")).collect(),
            "--times" => options.times = value().parse::<usize>().expect("a number").max(1),
            "--enter" => options.enter = value().split_whitespace().map(str::to_owned).collect(),
            "--only" => options.only.push(value()),
            other => panic!("unknown option {other}"),
        }
    }
    options
}

/// The program under test, built in the same profile.
fn binary() -> PathBuf {
    PathBuf::from(std::env::var_os("DVRUN_BENCH_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_dvrun").into()))
}
