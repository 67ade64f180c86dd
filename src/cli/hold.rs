//! `dvrun hold|release [RUN|STAGE]`: waiting jobs held back, or let go.

use std::collections::BTreeSet;

use clap::Args;

use super::args::Global;
use super::cancel::what;
use super::failure::{Failure, Outcome, exit};
use super::settings::Settings;
use crate::engine::slurm::{self, Hold};
use crate::state::Mode;
use crate::workflow::StageName;

/// Which jobs.
#[derive(Args)]
pub struct Arguments {
    /// A run (its id or the end of it) or a stage of the newest run; the newest run otherwise
    #[arg(value_name = "RUN|STAGE")]
    what: Option<String>,
}

pub fn run(arguments: &Arguments, hold: Hold, global: &Global, settings: &Settings) -> Outcome {
    let (run, stage) = what(arguments.what.as_deref())?;
    if run.info()?.mode == Mode::Local {
        return Err(Failure::message(exit::USAGE, "only jobs on SLURM can be held"));
    }
    let stages: BTreeSet<StageName> = match stage {
        Some(stage) => BTreeSet::from([stage]),
        None => run.plan()?.stages.keys().cloned().collect(),
    };
    let jobs = slurm::hold(&run, &settings.slurm(), &stages, hold)?;
    let word = match hold {
        Hold::Hold => "held",
        Hold::Release => "released",
    };
    if global.json {
        println!("{}", serde_json::json!({"run": run.id(), word: jobs}));
    } else if !global.quiet {
        match jobs.is_empty() {
            true => eprintln!("run {}: no waiting job to be {word}", run.id()),
            false => eprintln!("run {}: jobs {} {word}", run.id(), jobs.join(" ")),
        }
    }
    Ok(exit::DONE)
}
