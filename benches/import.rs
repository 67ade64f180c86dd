//! How long Python takes to import a large tree of packages, from a SIF file and from a folder of the same image: `cargo bench --bench
//! import`, as an ordinary user, after `cargo bench --bench convert` has made the image. `DVRUN_BENCH_EXE` names another dvrun, and
//! `DVRUN_BENCH_IMAGE` another OCI layout; words on the command line are other modules.
//!
//! All is in the page cache: the processor and the waiting for the image's server are what is measured. The first container of a program learns
//! what it reads, and the later ones have it read ahead.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;
const MODULES: [&str; 3] = ["numpy", "scipy.stats,pandas", "tensorflow"];

fn main() {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-convert/image-packages");
    let layout = std::env::var_os("DVRUN_BENCH_IMAGE").map_or(made, PathBuf::from);
    if !layout.join("index.json").exists() {
        println!("no image in {}: `cargo bench --bench convert` makes it", layout.display());
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bench = Bench {
        exe: std::env::var_os("DVRUN_BENCH_EXE").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_dvrun")), PathBuf::from),
        dir: dir.path(),
    };
    for (name, format) in [("folder", "dir"), ("image.sif", "sif")] {
        let mut pull = bench.dvrun("store");
        pull.args(["--quiet", "pull"]).arg(format!("oci:{}:1", layout.display()));
        pull.arg("-o").arg(dir.path().join(name)).args(["--format", format]);
        assert!(pull.stdout(Stdio::null()).status().is_ok_and(|status| status.success()), "{pull:?}");
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let chosen: Vec<&str> = words.iter().map(String::as_str).collect();
    println!("{:<24} {:>10} {:>16} {:>16}", "import", "folder ms", "SIF, first", "SIF, later");
    for modules in if chosen.is_empty() { &MODULES[..] } else { &chosen } {
        bench.modules(modules);
    }
}

struct Bench<'a> {
    exe: PathBuf,
    dir: &'a Path,
}

impl Bench<'_> {
    fn dvrun(&self, cache: &str) -> Command {
        let mut command = Command::new(&self.exe);
        command.env("DVRUN_CACHE", self.dir.join(cache)).env("HOME", self.dir);
        command
    }

    /// In turn, since a machine's speed changes by the minute.
    fn modules(&self, modules: &str) {
        let mut times = [const { Vec::new() }; 3];
        self.import("image.sif", &format!("{modules}-later"), modules);
        for round in 0..ROUNDS {
            times[0].push(self.import("folder", "store", modules));
            times[1].push(self.import("image.sif", &format!("{modules}-{round}"), modules));
            times[2].push(self.import("image.sif", &format!("{modules}-later"), modules));
        }
        let [folder, first, later] = times.map(|mut times: Vec<Duration>| {
            times.sort();
            times[ROUNDS / 2].as_secs_f64() * 1e3
        });
        let from_file = |time: f64| format!("{time:.0} ({:.2})", time / folder);
        println!("{modules:<24} {folder:>10.0} {:>16} {:>16}", from_file(first), from_file(later));
    }

    fn import(&self, image: &str, cache: &str, modules: &str) -> Duration {
        let mut command = self.dvrun(cache);
        command
            .arg("exec")
            .args(["--env", "OPENBLAS_NUM_THREADS=1"])
            .arg(self.dir.join(image));
        command.args(["--", "python3", "-c", &format!("import {modules}")]);
        let start = Instant::now();
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let took = start.elapsed();
        assert!(status.is_ok_and(|status| status.success()), "{command:?}");
        took
    }
}
