//! What the engine itself costs: `cargo bench --bench engine`, as an ordinary user.
//!
//! Start-up; planning many stages, and one of many shards; tasks that do nothing on this machine, beside GNU parallel and
//! snakemake where they are installed; status; and, where `sbatch` answers, submitting held jobs beside a bare loop of
//! `sbatch`. `BENCH_SCALE=10` does a tenth of each. Words on the command line choose among `start plan local status slurm`.

mod measure;
mod slurm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use measure::{Measured, measure, median};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |what: &str| words.is_empty() || words.iter().any(|word| word == what);
    let bench = Bench::new();
    if wanted("start") {
        let start = median(40, bench.dvrun().arg("--version"), bench.dir());
        report("start-up", Some(start), "10 ms");
    }
    if wanted("plan") {
        plan(&bench);
    }
    if wanted("local") {
        local(&bench);
    }
    if wanted("status") {
        status(&bench);
    }
    if wanted("slurm") {
        slurm::submit(&bench);
    }
}

/// Where all happens, and how much of it.
pub struct Bench {
    work: tempfile::TempDir,
    exe: PathBuf,
    scale: u32,
}

impl Bench {
    fn new() -> Bench {
        let own = || PathBuf::from(env!("CARGO_BIN_EXE_dvrun"));
        let scale = std::env::var("BENCH_SCALE").ok().and_then(|scale| scale.parse().ok());
        Bench {
            work: tempfile::tempdir().expect("a temporary folder"),
            exe: std::env::var_os("DVRUN_BENCH_EXE").map_or_else(own, PathBuf::from),
            scale: scale.unwrap_or(1),
        }
    }

    pub fn dir(&self) -> &Path {
        self.work.path()
    }

    /// That many, or what the scale leaves of it.
    pub fn many(&self, count: u32) -> u32 {
        (count / self.scale).max(1)
    }

    pub fn dvrun(&self) -> Command {
        let mut command = Command::new(&self.exe);
        command.env("HOME", self.dir()).env("DVRUN_CACHE", self.dir().join("cache"));
        command
    }

    /// The workflow `stages` in a folder of its own.
    pub fn flow(&self, name: &str, stages: &str) -> PathBuf {
        let folder = self.dir().join(name);
        fs::create_dir(&folder).expect("a new folder");
        let file = folder.join("flow.yaml");
        let text = format!("version: 1\nname: {name}\ndefaults: {{image: none}}\nstages:\n{stages}");
        fs::write(&file, text).expect("a file");
        file
    }
}

/// Independent stages that do nothing.
pub fn stages(count: u32) -> String {
    (0..count).map(|number| format!("  s{number}: {{run: [\"true\"]}}\n")).collect()
}

/// One stage of so many tasks that do nothing.
fn shards(count: u32) -> String {
    format!("  s: {{array: {count}, run: [\"true\"]}}\n")
}

/// A line of the table; `most` is what it is held against.
pub fn report(what: &str, measured: Option<Measured>, most: &str) {
    match measured {
        Some(measured) => println!(
            "{what:<52} {:>9.1} ms {:>6} MB   {most}",
            measured.took.as_secs_f64() * 1e3,
            measured.memory >> 20
        ),
        None => println!("{what:<52} not available"),
    }
}

/// What several measurements come to.
pub fn ratio(what: &str, ratio: f64, most: &str) {
    println!("{what:<52} {ratio:>9.2}               {most}");
}

fn plan(bench: &Bench) {
    let (many, wide) = (bench.many(10_000), bench.many(100_000));
    let file = bench.flow("many", &stages(many));
    let planned = median(5, bench.dvrun().arg("plan").arg(&file), bench.dir());
    report(&format!("plan of {many} stages"), Some(planned), "300 ms");
    let file = bench.flow("wide", &shards(wide));
    let planned = median(5, bench.dvrun().arg("plan").arg(&file), bench.dir());
    report(&format!("plan of {wide} shards"), Some(planned), "500 ms, 100 MB");
}

/// Each of these does as many tasks at once as there are cpus.
fn local(bench: &Bench) {
    let count = bench.many(10_000);
    let file = bench.flow("local", &shards(count));
    let own = measure(bench.dvrun().args(["--quiet", "run"]).arg(&file), bench.dir()).expect("a run that ends well");
    report(&format!("{count} tasks by dvrun run"), Some(own), "");
    let many = bench.flow("stages", &stages(count));
    let stages = measure(bench.dvrun().args(["--quiet", "run"]).arg(&many), bench.dir());
    report(&format!("{count} stages by dvrun run"), stages, "");
    let each = |took: Duration, tasks: u32| took.as_secs_f64() * 1e3 / f64::from(tasks);

    let parallel = bench.dir().join("numbers");
    let numbers: String = (0..count).map(|number| format!("{number}\n")).collect();
    fs::write(&parallel, numbers).expect("a file");
    let parallel = measure(Command::new("parallel").args(["true", "{}", "::::"]).arg(&parallel), bench.dir());
    report(&format!("{count} tasks by GNU parallel"), parallel, "");
    if let Some(parallel) = parallel {
        let times = parallel.took.as_secs_f64() / own.took.as_secs_f64();
        ratio("  GNU parallel / dvrun", times, "at least 1");
    }

    // What snakemake needs for itself is subtracted: two sizes tell it from what a task costs. That grows with the number of
    // tasks, and ten thousand take it more time than a benchmark has.
    let [few, more] = [500, 3000].map(|tasks| (bench.many(tasks), snakemake(bench, bench.many(tasks))));
    report(&format!("{} tasks by snakemake", few.0), few.1, "");
    report(&format!("{} tasks by snakemake", more.0), more.1, "");
    if let (Some(first), Some(second)) = (few.1, more.1) {
        let task = each(second.took.saturating_sub(first.took), more.0 - few.0);
        println!("  a task by snakemake {task:.2} ms, by dvrun {:.3} ms", each(own.took, count));
        ratio("  snakemake / dvrun, a task", task / each(own.took, count), "at least 50");
    }
    // What the machine itself needs to start a program and see it end.
    let floor = floor(count);
    report(&format!("{count} times `true`, started by threads"), Some(floor), "");
    ratio("  dvrun / that", own.took.as_secs_f64() / floor.took.as_secs_f64(), "");
}

/// `true` so many times, by as many threads as there are cpus.
fn floor(count: u32) -> Measured {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let left = AtomicU32::new(count);
    let take = || {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                while take() {
                    let status = Command::new("true").stdin(Stdio::null()).status();
                    assert!(status.expect("it is there").success());
                }
            });
        }
    });
    Measured {
        took: began.elapsed(),
        memory: 0,
    }
}

/// So many rules' jobs that do nothing, without the time that a file of their own would take.
fn snakemake(bench: &Bench, tasks: u32) -> Option<Measured> {
    let folder = bench.dir().join(format!("snakemake-{tasks}"));
    fs::create_dir(&folder).expect("a new folder");
    let rules = format!(
        "rule all:\n    input: expand(\"done/{{i}}\", i=range({tasks}))\nrule one:\n    output: touch(\"done/{{i}}\")\n    shell: \"true\"\n"
    );
    fs::write(folder.join("Snakefile"), rules).expect("a file");
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let mut command = Command::new("snakemake");
    command
        .args(["--quiet", "all", "--cores", &cores])
        .current_dir(&folder)
        .env("HOME", bench.dir());
    measure(&mut command, bench.dir())
}

/// A run of many shards, looked at while all of its records are there.
fn status(bench: &Bench) {
    let count = bench.many(100_000);
    let file = bench.flow("records", &shards(count));
    let folder = file.parent().expect("it is in a folder");
    let run = measure(bench.dvrun().args(["--quiet", "run"]).arg(&file), bench.dir());
    report(&format!("{count} tasks by dvrun run"), run, "");
    let status = median(5, bench.dvrun().arg("status").arg(folder), bench.dir());
    report(&format!("status of {count} tasks"), Some(status), "1000 ms");
    let entries = walkdir::WalkDir::new(folder.join(".dvrun")).into_iter().flatten();
    let files = entries.filter(|entry| entry.file_type().is_file()).count();
    println!("{:<52} {files:>9}               200", "  files in the runs' folder");
}
