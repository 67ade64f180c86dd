//! Submission beside a bare loop of `sbatch`. All jobs are held, so that none runs, and cancelled at the end.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::measure::{Measured, measure};
use super::{Bench, ratio, report, stages};

pub fn submit(bench: &Bench) {
    let count = bench.many(1000);
    let Some(bare) = bare(bench, count) else {
        println!("{:<52} not available", "submission");
        return;
    };
    report(&format!("{count} jobs by a loop of sbatch"), Some(bare), "");
    let file = bench.flow("submission", &stages(count));
    let config = bench.dir().join("config.yaml");
    fs::write(&config, "profile: held\nprofiles: {held: {slurm: {args: [--hold]}}}\n").expect("a file");
    let mut command = bench.dvrun();
    command.arg("--config").arg(&config).args(["--quiet", "submit"]).arg(&file);
    let own = measure(&mut command, bench.dir()).expect("a submission that ends well");
    report(&format!("{count} independent stages by dvrun submit"), Some(own), "");
    ratio("  dvrun / sbatch", own.took.as_secs_f64() / bare.took.as_secs_f64(), "at most 1.2");
    let mut cancel = bench.dvrun();
    cancel.arg("cancel").current_dir(file.parent().expect("it is in a folder"));
    report("  cancelling all of them", measure(&mut cancel, bench.dir()), "");
}

/// `None` without a cluster.
fn bare(bench: &Bench, count: u32) -> Option<Measured> {
    let script = bench.dir().join("bare.sh");
    fs::write(&script, "#!/bin/sh\ntrue\n").expect("a file");
    let began = Instant::now();
    let mut jobs: Vec<String> = Vec::new();
    for _ in 0..count {
        let mut sbatch = Command::new("sbatch");
        sbatch.args(["--parsable", "--hold", "--output=/dev/null"]).arg(&script);
        let output = sbatch.stderr(Stdio::null()).output().ok()?;
        if !output.status.success() {
            break;
        }
        jobs.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let took = began.elapsed();
    let cancelled = Command::new("scancel").args(&jobs).status();
    assert!(
        jobs.is_empty() || cancelled.is_ok_and(|status| status.success()),
        "the jobs are still there"
    );
    let all = jobs.len() == count as usize;
    all.then_some(Measured {
        took: took.max(Duration::from_millis(1)),
        memory: 0,
    })
}
