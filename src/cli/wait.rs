//! `dvrun wait [RUN]`: see a run to its end, wherever it runs.

use clap::Args;

use super::args::Global;
use super::failure::Outcome;
use super::select::find_run;
use super::settings::Settings;
use super::submit;

/// Wait until a run has ended; exit with 1 if something failed
///
/// Whoever waits only looks: Ctrl-C ends the waiting, and not the run.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun wait\n  dvrun submit pipeline.yaml && dvrun wait")]
pub struct Arguments {
    /// The run (its id or the end of it); the newest otherwise
    #[arg(value_name = "RUN")]
    run: Option<String>,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let run = find_run(arguments.run.as_deref())?;
    submit::wait_for(&run, &run.plan()?, global, settings)
}
