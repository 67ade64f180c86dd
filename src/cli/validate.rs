//! `dvrun validate FILE`: all mistakes, with positions.

use std::path::PathBuf;

use clap::Args;

use super::args::Global;
use super::failure::{Outcome, exit};
use super::file::{self, Overrides};
use super::show;

/// Check a workflow file; report every mistake with its position
#[derive(Args)]
#[command(after_help = "Example:\n  dvrun validate pipeline.yaml --set shards=8")]
pub struct Arguments {
    /// The workflow file
    file: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
}

pub fn run(arguments: &Arguments, global: &Global) -> Outcome {
    let workflow = file::read(&arguments.file, &arguments.overrides)?;
    if global.json {
        println!(
            "{}",
            serde_json::json!({"valid": true, "name": workflow.name, "stages": workflow.stages.len()})
        );
    } else if !global.quiet {
        let tasks: u64 = workflow.stages.values().map(|stage| u64::from(stage.tasks())).sum();
        println!(
            "{}: {}, {}, no mistakes",
            arguments.file.display(),
            show::count(workflow.stages.len() as u64, "stage"),
            show::count(tasks, "task")
        );
    }
    Ok(exit::DONE)
}
