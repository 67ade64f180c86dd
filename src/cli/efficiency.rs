//! `dvrun efficiency [RUN]`: what was asked for, what was used, and what would have been enough.

use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::args::Global;
use super::failure::{Outcome, exit};
use super::select::find_run;
use crate::engine::{self, StageUse};
use crate::workflow::units::{Bytes, Seconds};

/// Compare what stages ask for with what their tasks used
///
/// Peak memory is that of a task's largest process.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun efficiency\n  dvrun efficiency --json | jq '.[] | {stage, memory}'")]
pub struct Arguments {
    /// The run (its id or the end of it); the newest otherwise
    #[arg(value_name = "RUN")]
    run: Option<String>,
}

pub fn run(arguments: &Arguments, global: &Global) -> Outcome {
    let run = find_run(arguments.run.as_deref())?;
    let uses = engine::efficiency(&run, &run.plan()?)?;
    if global.json {
        println!("{:#}", json!(uses));
        return Ok(exit::DONE);
    }
    let width = uses.iter().map(|used| used.stage.0.len()).max().unwrap_or(0).max(5);
    println!(
        "{:width$}  {:>6}  {:>22}  {:>16}  {:>22}  {:>16}",
        "stage", "tasks", "memory used of", "cpus used of", "longest of", "read, written"
    );
    for used in &uses {
        let of = |used: String, asked: Option<String>| format!("{used} of {}", asked.unwrap_or_else(|| "-".to_owned()));
        println!(
            "{:width$}  {:>6}  {:>22}  {:>16}  {:>22}  {:>16}",
            used.stage.0,
            used.tasks,
            of(
                Bytes(used.memory_max).to_string(),
                used.asked.memory.map(|memory| memory.to_string())
            ),
            of(
                format!("{:.1}", used.cpu_share() * f64::from(used.asked.cpus)),
                Some(used.asked.cpus.to_string())
            ),
            of(
                Seconds(used.wall_max.div_ceil(1000)).to_string(),
                used.asked.time.map(|time| time.to_string())
            ),
            format!("{}, {}", HumanBytes(used.read_sum), HumanBytes(used.written_sum)),
        );
    }
    for used in &uses {
        if let Some(enough) = enough(used) {
            println!("{}: {enough} would be enough", used.stage);
        }
    }
    Ok(exit::DONE)
}

/// As the workflow file has it.
fn enough(used: &StageUse) -> Option<String> {
    let parts = [
        used.cpus.map(|cpus| format!("cpus: {cpus}")),
        used.memory.map(|memory| format!("memory: {}M", memory.mebibytes())),
        used.time.map(|time| format!("time: {}m", time.0.div_ceil(60))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("resources: {{{}}}", parts.join(", ")))
}
