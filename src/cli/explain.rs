//! `dvrun explain STAGE[/INDEX]`: what happened to a task, the evidence, and what to type next.

use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::args::Global;
use super::failure::{Outcome, exit};
use super::select::{Selection, find_run};
use super::settings::Settings;
use super::{show, status};
use crate::engine::{self, Explanation, TaskState};
use crate::plan::Plan;
use crate::state::{Mode, Outcome as Recorded, RunDir};
use crate::workflow::StageName;
use crate::workflow::units::Bytes;

/// Tell what happened to a task, with the evidence, and what to do next
///
/// Of a stage with several tasks, the one that says most: the first that failed.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun explain call\n  dvrun explain call/3")]
pub struct Arguments {
    /// The stage, or one task of it
    #[arg(value_name = "STAGE[/INDEX]")]
    selection: Selection,
    /// The run (its id or the end of it); the newest otherwise
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let run = find_run(arguments.run.as_deref())?;
    let plan = run.plan()?;
    let slurm = (run.info()?.mode == Mode::Slurm).then(|| settings.slurm());
    let (stage, index) = arguments.selection.task_in(&plan)?;
    let index = match index {
        Some(index) => index,
        None => engine::telling(&engine::status(&run, &plan, slurm.as_ref())?, &stage),
    };
    let explanation = engine::explain(&run, &plan, &stage, index, slurm.as_ref())?;
    let next = next(&plan, &run, &stage, &explanation);
    if global.json {
        println!(
            "{:#}",
            json!({"run": run.id(), "stage": stage, "explanation": explanation, "next": next})
        );
    } else {
        print!("{}", text(&plan, &run, &stage, &explanation, &next));
    }
    Ok(exit::DONE)
}

fn text(plan: &Plan, run: &RunDir, stage: &StageName, explanation: &Explanation, next: &[String]) -> String {
    let task = &explanation.task;
    let name = status::task_name(plan, stage, task.index);
    let mut text = format!("{name} (run {}): {}\n", run.id(), status::message(task.state, &task.message));
    let mut line = |what: &str, value: String| text += &format!("  {what:<9} {value}\n");
    // One that says why nothing was started has no attempt to speak of.
    if let Some(record) = explanation
        .record
        .as_ref()
        .filter(|record| record.outcome != Recorded::UpstreamFailed)
    {
        let max = plan.stages[stage].stage.retry.max;
        line(
            "attempt",
            format!(
                "{} of at most {}, on {}",
                record.attempt + 1,
                max.max(record.attempt) + 1,
                record.host
            ),
        );
        let from = show::moment(record.started);
        match record.ended {
            Some(ended) => line("time", format!("{from} to {}, {}", show::moment(ended), show::elapsed(record))),
            None => line("time", format!("since {from}")),
        }
        let asked = plan.stages[stage].stage.resources.memory;
        let asked = asked.map(|memory| format!(" (asked for {memory})")).unwrap_or_default();
        if let (Some(cpu), Some(memory)) = (record.cpu, record.memory) {
            let cpu = cpu as f64 / 1000.0;
            let io = match (record.read, record.written) {
                (Some(read), Some(written)) => format!("; {} read, {} written", HumanBytes(read), HumanBytes(written)),
                _ => String::new(),
            };
            line("used", format!("{cpu:.1} s of cpu, {} of memory at most{asked}{io}", Bytes(memory)));
        }
    }
    if let Some(job) = &task.job {
        match &explanation.slurm {
            Some(state) => line("slurm", format!("job {job}: {state}")),
            None => line("slurm", format!("job {job}: Slurm knows nothing of it any more")),
        }
    }
    if let Some(start) = &explanation.expected {
        line("expected", format!("to start {}", start.replace('T', " ")));
    }
    for (need, tasks) in &explanation.needs {
        let how = match task.state {
            TaskState::Waiting => "has not ended yet",
            _ => "did not end well",
        };
        line("needs", format!("{}, which {how}", show::target(plan, need, tasks)));
    }
    for log in &explanation.logs {
        line("log", show::relative(log).display().to_string());
        // Only an aid: a log that cannot be read is found by its path.
        for last in show::last_lines(log).unwrap_or_default() {
            line("", format!("| {last}"));
        }
    }
    for (place, step) in next.iter().enumerate() {
        text += &format!("{} {step}\n", if place == 0 { "next:" } else { "     " });
    }
    text
}

/// The commands that help, most promising first.
fn next(plan: &Plan, run: &RunDir, stage: &StageName, explanation: &Explanation) -> Vec<String> {
    let task = &explanation.task;
    let name = status::task_name(plan, stage, task.index);
    let resources = &plan.stages[stage].stage.resources;
    let file = show::relative(&plan.file);
    match task.state {
        TaskState::Ok => vec![format!("dvrun logs {name}")],
        TaskState::Running => vec![format!("dvrun logs {name} -f")],
        TaskState::Waiting => match explanation.needs.first() {
            Some((need, _)) => vec![format!("dvrun explain {need}")],
            None => vec!["dvrun status".to_owned()],
        },
        TaskState::Failed | TaskState::OutputMissing => vec![format!("dvrun logs {name} --stderr"), format!("dvrun rerun {name}")],
        TaskState::OutOfMemory => {
            let more = resources.memory.map_or(Bytes(8 << 30), |memory| Bytes(memory.0.saturating_mul(2)));
            vec![format!("dvrun rerun {name} --memory {}M", more.mebibytes())]
        }
        TaskState::TimedOut => {
            let more = resources.time.map_or(1440, |time| time.0.saturating_mul(2).div_ceil(60));
            vec![format!("dvrun rerun {name} --time {more}m")]
        }
        TaskState::NodeFail | TaskState::Preempted | TaskState::Broken | TaskState::Cancelled => vec![format!("dvrun rerun {name}")],
        TaskState::UpstreamFailed => (explanation.needs.iter())
            .map(|(need, tasks)| {
                format!(
                    "dvrun explain {}",
                    tasks
                        .iter()
                        .next()
                        .map_or(need.to_string(), |index| status::task_name(plan, need, index))
                )
            })
            .collect(),
        TaskState::Interrupted | TaskState::NotStarted | TaskState::NotSelected => match run.info().map(|info| info.mode) {
            Ok(Mode::Slurm) => vec![format!("dvrun submit {}", file.display())],
            _ => vec![format!("dvrun run {}", file.display())],
        },
        TaskState::Unknown => vec!["dvrun status".to_owned(), "scontrol ping".to_owned()],
    }
}
