//! Submission beside a bare loop of `sbatch`. All jobs are held, so that none runs, and cancelled at the end.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::measure::{Measured, measure, middle};
use super::{Bench, ratio, report, stages};

/// In turn, several times, each first in every other round: what else the machine and the controller do changes by the minute, and
/// a controller that still knows of a thousand jobs more is slower.
pub fn submit(bench: &Bench) {
    const ROUNDS: usize = 6;
    let count = bench.many(1000);
    let config = bench.dir().join("config.yaml");
    fs::write(&config, "profile: held\nprofiles: {held: {slurm: {args: [--hold]}}}\n").expect("a file");
    let (mut loops, mut own, mut cancels) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut by_loop = || bare(bench, count).map(|took| loops.push(took));
        let mut by_dvrun = || {
            let file = bench.flow(&format!("submission-{round}"), &stages(count));
            let mut command = bench.dvrun();
            command.arg("--config").arg(&config).args(["--quiet", "submit"]).arg(&file);
            own.push(measure(&mut command, bench.dir()).expect("a submission that ends well"));
            let mut cancel = bench.dvrun();
            cancel.arg("cancel").current_dir(file.parent().expect("it is in a folder"));
            cancels.push(measure(&mut cancel, bench.dir()).expect("jobs that can be cancelled"));
        };
        if round % 2 > 0 {
            by_dvrun();
        }
        if by_loop().is_none() {
            println!("{:<52} not available", "submission");
            return;
        }
        if round % 2 == 0 {
            by_dvrun();
        }
    }
    let [loops, own, cancels] = [loops, own, cancels].map(middle);
    report(&format!("{count} jobs by a loop of sbatch"), Some(loops), "");
    report(&format!("{count} independent stages by dvrun submit"), Some(own), "");
    ratio("  dvrun / sbatch", own.took.as_secs_f64() / loops.took.as_secs_f64(), "at most 1.2");
    report("  cancelling all of them", Some(cancels), "");
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
