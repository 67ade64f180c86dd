//! A profile against the cluster at hand.

use std::ffi::OsStr;
use std::path::Path;

use super::call::{Slurm, call};
use super::profile::{GpuFlag, MemoryFlag, SlurmProfile};
use super::query::without_accounts;
use super::submit::setting;
use super::version::{NEWEST, OLDEST, Version};

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    /// What it is about.
    pub what: String,
    /// What was found, or why it is not as it should be.
    pub found: Result<String, String>,
}

/// Looks at the cluster's version, commands and limits, and has Slurm judge (`sbatch --test-only`, which submits nothing) a
/// job with what `profile` asks for, one for each of its partitions, and one with `gpus` GPUs.
pub fn check(profile: &SlurmProfile, slurm: &Slurm, gpus: u32, script: &Path) -> Vec<Finding> {
    let ask =
        |program, args: &[&str]| call(slurm, program, &Vec::from_iter(args.iter().map(OsStr::new))).map_err(|error| error.to_string());
    let mut findings = Vec::new();
    let mut find = |what: &str, found| {
        findings.push(Finding {
            what: what.to_owned(),
            found,
        })
    };
    find("slurm", ask(&slurm.sbatch, &["--version"]).and_then(|text| version(&text)));
    find(
        "controller",
        ask(&slurm.scontrol, &["show", "config"]).map(|config| described(&config)),
    );
    if let Some(sacct) = &slurm.sacct {
        let answer = call(slurm, sacct, &["-X", "-n", "-P", "--format=JobID", "-S", "now"].map(OsStr::new));
        let found = match without_accounts(answer) {
            Ok(Some(_)) => Ok("sacct answers".to_owned()),
            Ok(None) => Ok("there are none: a job that left no record is unknown once the queue has forgotten it".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        find("accounts", found);
    }
    let mut options = vec!["--test-only".to_owned()];
    options.extend(asked(profile));
    options.push(match profile.memory {
        MemoryFlag::Mem => "--mem=100M".to_owned(),
        MemoryFlag::MemPerCpu => "--mem-per-cpu=100M".to_owned(),
    });
    options.extend(["--time=10".to_owned(), "--requeue".to_owned()]);
    let mut judge = |what: &str, more: Option<String>| {
        let mut words: Vec<&str> = options.iter().map(String::as_str).collect();
        words.extend(more.as_deref());
        let script = script.to_string_lossy();
        words.push(&script);
        let shown = words[1..words.len() - 1].join(" ");
        find(what, ask(&slurm.sbatch, &words).map(|_| format!("would be taken: {shown}")));
    };
    judge("job", None);
    for partition in &profile.partitions {
        judge(
            &format!("partition {}", partition.name),
            Some(format!("--partition={}", partition.name)),
        );
    }
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

fn version(text: &str) -> Result<String, String> {
    let said = text.trim();
    match Version::parse(text) {
        Some(version) if version < OLDEST => Err(format!("{said} is older than {OLDEST}, the first that dvrun knows")),
        Some(version) if version > NEWEST => Ok(format!("{said}, newer than {NEWEST}, the last that dvrun was made for")),
        Some(_) => Ok(said.to_owned()),
        None => Err(format!("`{said}` names no version")),
    }
}

/// What of `scontrol show config` matters here.
fn described(config: &str) -> String {
    let value = |key: &str| setting(config, key).unwrap_or("unknown");
    format!(
        "arrays up to {}, {} jobs at once, jobs kept for {}, accounts in {}",
        value("MaxArraySize"),
        value("MaxJobCount"),
        value("MinJobAge"),
        value("AccountingStorageType")
    )
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
