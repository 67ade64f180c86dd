//! A profile against the cluster at hand.

use std::ffi::OsStr;
use std::path::Path;

use super::call::{CallError, Slurm, call};
use super::profile::{GpuFlag, MemoryFlag, SlurmProfile};
use super::submit::limits;

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    /// What it is about.
    pub what: &'static str,
    /// What was found, or why it is not as it should be.
    pub found: Result<String, CallError>,
}

/// Looks at the cluster's commands and limits, and has Slurm judge (`sbatch --test-only`, which submits nothing) a job
/// with what `profile` asks for, and with `gpus` GPUs.
pub fn check(profile: &SlurmProfile, slurm: &Slurm, gpus: u32, script: &Path) -> Vec<Finding> {
    let ask = |program, args: &[&str]| call(slurm, program, &Vec::from_iter(args.iter().map(OsStr::new)));
    let mut findings = vec![Finding {
        what: "slurm",
        found: ask(&slurm.sbatch, &["--version"]).map(|text| text.trim().to_owned()),
    }];
    let config = ask(&slurm.scontrol, &["show", "config"]);
    let value = |key: &str| {
        let text = config.as_deref().unwrap_or_default();
        let line = text
            .lines()
            .find(|line| line.split('=').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| line.split_once('='))
            .map_or("unknown", |(_, value)| value.trim())
            .to_owned()
    };
    let described = format!(
        "arrays up to {}, jobs kept for {}, accounts in {}",
        limits(slurm).map_or(0, |limits| limits.array_size),
        value("MinJobAge"),
        value("AccountingStorageType")
    );
    findings.push(Finding {
        what: "controller",
        found: config.as_ref().map(|_| described).map_err(|error| CallError::Failed {
            command: slurm.scontrol.display().to_string(),
            status: "no answer".to_owned(),
            message: error.to_string(),
        }),
    });
    if let Some(sacct) = &slurm.sacct {
        findings.push(Finding {
            what: "accounts",
            found: ask(sacct, &["-X", "-n", "-P", "--format=JobID", "-S", "now"]).map(|_| "sacct answers".to_owned()),
        });
    }
    let mut options = vec!["--test-only".to_owned()];
    options.extend(asked(profile));
    options.push(match profile.memory {
        MemoryFlag::Mem => "--mem=100M".to_owned(),
        MemoryFlag::MemPerCpu => "--mem-per-cpu=100M".to_owned(),
    });
    options.extend(["--time=10".to_owned(), "--requeue".to_owned()]);
    let mut judge = |what, more: Option<String>| {
        let mut words: Vec<&str> = options.iter().map(String::as_str).collect();
        words.extend(more.as_deref());
        let script = script.to_string_lossy();
        words.push(&script);
        let shown = words[1..words.len() - 1].join(" ");
        findings.push(Finding {
            what,
            found: ask(&slurm.sbatch, &words).map(|_| format!("would be taken: {shown}")),
        });
    };
    judge("job", None);
    if gpus > 0 {
        let flag = match profile.gpus {
            GpuFlag::Gres => format!("--gres=gpu:{gpus}"),
            GpuFlag::Gpus => format!("--gpus={gpus}"),
            GpuFlag::GpusPerNode => format!("--gpus-per-node={gpus}"),
        };
        judge("gpu job", Some(flag));
    }
    findings
}

/// The options that a profile adds to every job.
fn asked(profile: &SlurmProfile) -> Vec<String> {
    let named = [
        ("account", &profile.account),
        ("partition", &profile.partition),
        ("qos", &profile.qos),
        ("constraint", &profile.constraint),
    ];
    let named = named
        .into_iter()
        .filter_map(|(option, value)| Some(format!("--{option}={}", value.as_ref()?)));
    let kill = profile
        .kill_invalid_depend
        .map(|kill| format!("--kill-on-invalid-dep={}", if kill { "yes" } else { "no" }));
    named.chain(kill).chain(profile.args.iter().cloned()).collect()
}
