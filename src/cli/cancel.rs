//! `dvrun cancel [RUN|STAGE]`: end what runs, and take what waits out of the queue.

use std::collections::BTreeSet;

use clap::Args;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::prepare::{self, PATIENCE};
use super::select::find_run;
use super::settings::Settings;
use super::show;
use crate::engine::slurm::{self, Submitter};
use crate::plan::Plan;
use crate::state::{Event, Journal, Mode, RunDir};
use crate::workflow::StageName;

/// Cancel a run, or a stage with what needs it
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun cancel\n  dvrun cancel call\n  dvrun cancel 20260131-142530-123")]
pub struct Arguments {
    /// A run (its id or the end of it) or a stage of the newest run; the newest run otherwise
    #[arg(value_name = "RUN|STAGE")]
    what: Option<String>,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let (run, stage) = what(arguments.what.as_deref())?;
    let plan = run.plan()?;
    if run.info()?.mode == Mode::Local {
        if let Some(stage) = stage {
            return Err(Failure::message(
                exit::USAGE,
                format!("stage {stage} runs on this machine, where only the whole run can be cancelled"),
            ));
        }
        return end_local(&run, global, settings);
    }
    let stages: BTreeSet<StageName> = match stage {
        Some(stage) => slurm::with_dependants(&plan, &[stage]),
        None => plan.stages.keys().cloned().collect(),
    };
    // Whoever submits holds it.
    let lock = prepare::lock(&plan.dir);
    let submitter = lock.as_ref().map_or(Submitter::Perhaps, |_| Submitter::Gone);
    let cancelled = slurm::cancel(&run, &settings.slurm(), &stages, submitter, PATIENCE)?;
    if global.json {
        println!(
            "{}",
            serde_json::json!({"run": run.id(), "jobs": cancelled.jobs, "tasks": cancelled.tasks, "lingering": cancelled.lingering})
        );
    } else if !global.quiet {
        eprintln!(
            "run {}: {} cancelled, {}",
            run.id(),
            show::count(cancelled.jobs.len() as u64, "job"),
            show::count(u64::from(cancelled.tasks), "task")
        );
    }
    if cancelled.to_come > 0 {
        return Err(Failure::message(
            exit::INFRASTRUCTURE,
            format!(
                "{} more may be submitted at this moment",
                show::count(cancelled.to_come as u64, "job")
            ),
        )
        .hint("when that has ended, call `dvrun cancel` again"));
    }
    if cancelled.lingering.is_empty() {
        return Ok(exit::DONE);
    }
    let lingering = cancelled.lingering.join(" ");
    Err(Failure::message(
        exit::INFRASTRUCTURE,
        format!("jobs {lingering} were told to end and have not left the queue yet"),
    )
    .hint("see `squeue`; call `dvrun cancel` again"))
}

/// A run, or a stage of the newest one.
pub fn what(text: Option<&str>) -> Result<(RunDir, Option<StageName>), Failure> {
    let Some(text) = text else { return Ok((find_run(None)?, None)) };
    let newest = find_run(None)?;
    let plan: Plan = newest.plan()?;
    let stage = StageName(text.to_owned());
    if plan.stages.contains_key(&stage) {
        Ok((newest, Some(stage)))
    } else {
        Ok((find_run(Some(text))?, None))
    }
}

/// Tells the process that runs the graph to stop now: it ends its tasks and their containers.
fn end_local(run: &RunDir, global: &Global, settings: &Settings) -> Outcome {
    let path = run.journal_path();
    let events =
        Journal::read(&path).map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot read {}: {error}", path.display())))?;
    let (pid, host) = match events
        .iter()
        .rev()
        .find(|event| matches!(event, Event::Started { .. } | Event::Ended { .. }))
    {
        Some(Event::Started { pid, host }) => (*pid, host),
        _ => {
            if !global.quiet {
                eprintln!("run {}: nothing is running", run.id());
            }
            return Ok(exit::DONE);
        }
    };
    if *host != settings.host {
        return Err(Failure::message(exit::USAGE, format!("the run is on host {host}"))
            .hint(format!("call `dvrun cancel` there, or: ssh {host} kill {pid}")));
    }
    match signal::kill(Pid::from_raw(pid as i32), Signal::SIGTERM) {
        Ok(()) if !global.quiet => eprintln!("run {}: told process {pid} to stop", run.id()),
        Ok(()) => {}
        Err(nix::errno::Errno::ESRCH) if !global.quiet => eprintln!("run {}: nothing is running", run.id()),
        Err(nix::errno::Errno::ESRCH) => {}
        Err(errno) => {
            return Err(Failure::message(
                exit::INFRASTRUCTURE,
                format!("cannot stop process {pid}: {errno}"),
            ));
        }
    }
    Ok(exit::DONE)
}
