//! `dvrun status [RUN]`: how a run stands.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::select::find_run;
use super::settings::Settings;
use super::{say, show};
use crate::engine::slurm;
use crate::engine::{self, RunState, RunStatus, StageStatus, TaskState};
use crate::plan::Plan;
use crate::state::Mode;
use crate::workflow::StageName;

/// Show how a run stands
///
/// Exit records come first, then SLURM's queue, then its accounts. Exit code 1: something failed.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun status\n  dvrun status --watch\n  dvrun status --json\n  dvrun status 142530-123")]
pub struct Arguments {
    /// The run (its id or the end of it); the newest otherwise
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Look again every few seconds, and show what has changed, until nothing runs or waits any more
    ///
    /// A terminal always shows the latest; elsewhere each change is printed after the one before.
    #[arg(long, short)]
    watch: bool,
}

/// How often it is looked again: a file is read, or a controller asked that serves a whole cluster.
const AGAIN_HERE: Duration = Duration::from_secs(1);
const AGAIN_ON_SLURM: Duration = Duration::from_secs(15);

/// Clears a terminal and goes to its first line (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let run = find_run(arguments.run.as_deref())?;
    let mode = run.info()?.mode;
    let clears = arguments.watch && !global.json && io::stdout().is_terminal();
    let mut last = String::new();
    loop {
        // Read anew each time: a rerun may have changed it.
        let plan = run.plan()?;
        if mode == Mode::Slurm {
            slurm::adopt(&run, &settings.slurm())?;
        }
        let status = engine::status(&run, &plan, Some(&settings.slurm()))?;
        let now = shown(&status, &plan, global)?;
        if now != last {
            let clear = if clears { CLEAR } else { "" };
            let mut out = io::stdout().lock();
            if let Err(error) = write!(out, "{clear}{now}").and_then(|()| out.flush()) {
                // Whoever looked has gone away.
                say::lost(error);
                return Ok(code(&status));
            }
            last = now;
        }
        if !arguments.watch || status.state != RunState::Active {
            return Ok(code(&status));
        }
        std::thread::sleep(match mode {
            Mode::Local => AGAIN_HERE,
            Mode::Slurm => AGAIN_ON_SLURM,
        });
    }
}

/// On standard output, as text or as JSON.
pub fn print(status: &RunStatus, plan: &Plan, global: &Global) -> Result<(), Failure> {
    print!("{}", shown(status, plan, global)?);
    Ok(())
}

fn shown(status: &RunStatus, plan: &Plan, global: &Global) -> Result<String, Failure> {
    if !global.json {
        return Ok(text(status, plan));
    }
    let text = serde_json::to_string_pretty(status).map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    Ok(text + "\n")
}

/// The exit code that stands for a run's state.
pub fn code(status: &RunStatus) -> u8 {
    match status.state {
        RunState::Done | RunState::Active | RunState::Incomplete => exit::DONE,
        RunState::Failed => exit::FAILED,
    }
}

/// A run's state in a word.
pub fn state_of(state: RunState) -> &'static str {
    match state {
        RunState::Done => "done",
        RunState::Active => "active",
        RunState::Failed => "failed",
        RunState::Incomplete => "incomplete",
    }
}

/// Tasks of a stage that are shown one by one.
const SHOWN: usize = 10;

/// A line a stage, and one for each of the first tasks that did not end well.
fn text(status: &RunStatus, plan: &Plan) -> String {
    let state = state_of(status.state);
    let mut text = format!("{} (run {}): {state}\n", status.name, status.run);
    let width = status.stages.keys().map(|name| name.0.len()).max().unwrap_or(0);
    for (name, stage) in &status.stages {
        text += &format!("  {:width$}  {}\n", name.0, counts(stage));
        for (reason, count) in &stage.waiting {
            text += &format!("  {:width$}    {count} waiting: {reason}\n", "");
        }
        if let Some(start) = &stage.expected {
            text += &format!("  {:width$}    expected to start: {}\n", "", start.replace('T', " "));
        }
        let (idle, own): (Vec<_>, Vec<_>) = (stage.problems.iter()).partition(|task| task.state == TaskState::UpstreamFailed);
        if let Some(task) = idle.first().filter(|task| !task.message.is_empty()) {
            text += &format!("  {:width$}    {}\n", "", task.message);
        }
        for task in own.iter().take(SHOWN) {
            let place: Vec<&str> = [task.host.as_deref(), task.job.as_deref()].into_iter().flatten().collect();
            let place = if place.is_empty() {
                String::new()
            } else {
                format!(" ({})", place.join(", job "))
            };
            text += &format!(
                "  {:width$}    {}: {}{place}\n",
                "",
                task_name(plan, name, task.index),
                message(task.state, &task.message)
            );
            if task.log.is_file() {
                text += &format!("  {:width$}      log: {}\n", "", show::relative(&task.log).display());
            }
        }
        let bad = stage
            .counts
            .iter()
            .filter(|(state, _)| state.is_failure() && **state != TaskState::UpstreamFailed);
        let more = bad
            .map(|(_, count)| *count as usize)
            .sum::<usize>()
            .saturating_sub(own.len().min(SHOWN));
        if more > 0 {
            text += &format!("  {:width$}    and {more} more; all: {}\n", "", show::some_of(&stage.failed));
        }
    }
    for problem in &status.problems {
        text += &format!("note: {problem}\n");
    }
    if !status.stuck.is_empty() {
        text += &format!(
            "note: jobs {} never run, since what they need failed; `dvrun cancel` takes them out of the queue\n",
            status.stuck.join(" ")
        );
    }
    text
}

pub fn message(state: TaskState, message: &str) -> String {
    let state = state_name(state);
    if message.is_empty() {
        state.to_owned()
    } else {
        format!("{state}: {message}")
    }
}

/// `3 ok, 1 failed`.
pub fn counts(stage: &StageStatus) -> String {
    let parts = stage.counts.iter().map(|(state, count)| match (stage.tasks, count) {
        (1, _) => state_name(*state).to_owned(),
        (all, count) if *count == all => format!("{} ({all} tasks)", state_name(*state)),
        (_, count) => format!("{count} {}", state_name(*state)),
    });
    parts.collect::<Vec<_>>().join(", ")
}

pub fn task_name(plan: &Plan, stage: &StageName, index: u32) -> String {
    match plan.stages.get(stage).and_then(|planned| planned.stage.array.as_ref()) {
        Some(_) => format!("{stage}/{index}"),
        None => stage.to_string(),
    }
}

/// In plain words.
fn state_name(state: TaskState) -> &'static str {
    match state {
        TaskState::Ok => "ok",
        TaskState::Running => "running",
        TaskState::Waiting => "waiting",
        TaskState::Failed => "failed",
        TaskState::OutputMissing => "output missing",
        TaskState::OutOfMemory => "out of memory",
        TaskState::TimedOut => "out of time",
        TaskState::NodeFail => "node failed",
        TaskState::Preempted => "preempted",
        TaskState::UpstreamFailed => "not run: what it needs failed",
        TaskState::Broken => "broken",
        TaskState::Cancelled => "cancelled",
        TaskState::Interrupted => "interrupted",
        TaskState::NotStarted => "not started",
        TaskState::NotSelected => "not selected",
        TaskState::Unknown => "unknown",
    }
}
