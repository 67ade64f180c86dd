//! `dvrun profile check`: whether the cluster at hand takes what a profile asks for.

use std::io::Write as _;

use clap::{Args, Subcommand};
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::settings::Settings;
use crate::engine::slurm;

/// Look after the configuration's profiles
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(Check),
}

/// Have the cluster at hand judge a profile; nothing is submitted
///
/// The profile is that of --profile, else the configuration's own choice.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun profile check\n  dvrun --profile gpu profile check --gpus 1")]
struct Check {
    /// Ask for a job with so many GPUs too
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpus: u32,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let Command::Check(arguments) = &arguments.command;
    let script = script().map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    let findings = slurm::check(&settings.profile.slurm, &settings.slurm(), arguments.gpus, script.path());
    let ok = findings.iter().all(|finding| finding.found.is_ok());
    if global.json {
        let list: Vec<_> = findings
            .iter()
            .map(|finding| match &finding.found {
                Ok(found) => json!({"what": finding.what, "ok": true, "found": found}),
                Err(error) => json!({"what": finding.what, "ok": false, "found": error}),
            })
            .collect();
        println!("{:#}", json!(list));
    } else {
        for finding in &findings {
            match &finding.found {
                Ok(found) => println!("  ok    {:<11} {found}", finding.what),
                Err(error) => println!("  FAIL  {:<11} {error}", finding.what),
            }
        }
    }
    Ok(if ok { exit::DONE } else { exit::INFRASTRUCTURE })
}

/// Something to judge.
fn script() -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(b"#!/bin/sh\ntrue\n")?;
    Ok(file)
}
