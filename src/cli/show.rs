//! Plans, progress and summaries as text.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::args::Global;
use super::failure::{Outcome, exit};
use crate::engine::local::{Progress, Stop, Summary};
use crate::plan::{self, Plan};
use crate::state::{Outcome as TaskOutcome, Record, RunDir};
use crate::workflow::StageName;

/// Lines of a failed task's log that are shown.
const LAST_LINES: usize = 10;

/// What is to run, and why.
pub fn planned(plan: &Plan, global: &Global) {
    if !global.quiet && !global.json {
        eprint!("{}", self::plan(plan));
    }
}

/// A line for the whole and one for each stage.
pub fn plan(plan: &Plan) -> String {
    let tasks: u64 = plan.stages.values().map(|stage| u64::from(stage.todo.len())).sum();
    let mut text = format!(
        "{}: {}, {} to run\n",
        plan.name,
        count(plan.stages.len() as u64, "stage"),
        count(tasks, "task")
    );
    let stages = plan::summary(plan);
    let width = stages.iter().map(|stage| stage.name.0.len()).max().unwrap_or(0);
    for stage in &stages {
        let all = count(stage.tasks.into(), "task");
        let tasks = if stage.todo == stage.tasks || stage.todo == 0 {
            all
        } else {
            format!("{} of {all}", stage.todo)
        };
        text += &format!("  {:width$}  {tasks:<16} {}\n", stage.name.0, stage.reason);
    }
    text
}

/// `1 task`, `2 tasks`.
pub fn count(many: u64, what: &str) -> String {
    format!("{many} {what}{}", if many == 1 { "" } else { "s" })
}

/// The answer to a command that has nothing to do, since the workflow is finished: `answer` in JSON, which is of the shape that the
/// command's answers have.
pub fn nothing_to_do(plan: &Plan, latest: Option<&RunDir>, answer: &serde_json::Value, global: &Global) -> Outcome {
    if global.json {
        println!("{answer}");
    } else if !global.quiet {
        let run = latest.map(|run| format!(" (run {})", run.id())).unwrap_or_default();
        eprintln!("{}: everything is done{run}; nothing to run", plan.name);
    }
    Ok(exit::DONE)
}

/// One event of a local run.
pub fn progress(run: &RunDir, plan: &Plan, event: &Progress, global: &Global) {
    let task = |stage: &StageName, index: u32| match plan.stages[stage].stage.array {
        Some(_) => format!("{stage}/{index}"),
        None => stage.to_string(),
    };
    match event {
        Progress::Ended { stage, index, record } if record.outcome != TaskOutcome::Ok => {
            eprintln!("  {:<24} {}: {}", task(stage, *index), outcome(&record.outcome), record.message);
            failed_log(run, stage, *index);
        }
        _ if global.quiet => {}
        Progress::Started { .. } => {}
        Progress::Ended { stage, index, record } => eprintln!("  {:<24} ok  {}", task(stage, *index), elapsed(record)),
        Progress::Retrying { stage, index, attempt } => eprintln!("  {:<24} trying again ({attempt})", task(stage, *index)),
        Progress::Skipped { stage, index, by } => eprintln!("  {:<24} not run: {by} did not end well", task(stage, *index)),
        Progress::Stopping {
            wish: Stop::Finish,
            running,
        } => {
            eprintln!(
                "stopping: {} running; interrupt again to end what runs",
                count(*running as u64, "task")
            );
        }
        Progress::Stopping { wish: Stop::Now, running } => eprintln!("stopping now: {} told to end", count(*running as u64, "task")),
    }
}

fn failed_log(run: &RunDir, stage: &StageName, index: u32) {
    let (stdout, stderr) = run.task_logs(stage, index);
    let Some(path) = [stderr, stdout].into_iter().find(|path| path.is_file()) else {
        return;
    };
    eprintln!("    log: {}", relative(&path).display());
    // Only an aid: a log that cannot be read is found by its path.
    for line in last_lines(&path).unwrap_or_default() {
        eprintln!("    | {line}");
    }
}

/// The last lines of a log, from its last 16 KiB.
pub fn last_lines(path: &Path) -> std::io::Result<Vec<String>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(16 << 10)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LAST_LINES)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect())
}

/// A run's end.
pub fn summary(run: &RunDir, summary: &Summary, took: Duration, global: &Global) {
    if global.json {
        println!("{}", summary_json(Some(run), summary, took));
    }
    if global.quiet {
        return;
    }
    let Summary { ok, failed, not_run, .. } = summary;
    if failed + not_run == 0 {
        eprintln!("done: {ok} ok in {:.1} s (run {})", took.as_secs_f64(), run.id());
    } else {
        eprintln!(
            "not done: {ok} ok, {failed} failed, {not_run} not run in {:.1} s (run {})",
            took.as_secs_f64(),
            run.id()
        );
        eprintln!("  hint: after mending it, the same command goes on with what is missing");
    }
}

/// The same for programs. `run` is the one that the workflow finished in where nothing had to run, `None` where it has no stage.
pub fn summary_json(run: Option<&RunDir>, summary: &Summary, took: Duration) -> serde_json::Value {
    let state = if summary.failed + summary.not_run == 0 { "done" } else { "failed" };
    serde_json::json!({"run": run.map(RunDir::id), "state": state, "ok": summary.ok, "failed": summary.failed,
        "not_run": summary.not_run, "seconds": took.as_secs_f64()})
}

/// In a few plain words.
pub fn outcome(outcome: &TaskOutcome) -> &'static str {
    match outcome {
        TaskOutcome::Running => "running",
        TaskOutcome::Ok => "ok",
        TaskOutcome::Failed { .. } => "failed",
        TaskOutcome::OutputMissing => "output missing",
        TaskOutcome::OutOfMemory => "out of memory",
        TaskOutcome::TimedOut => "out of time",
        TaskOutcome::UpstreamFailed => "not run",
        TaskOutcome::Cancelled => "cancelled",
        TaskOutcome::Broken => "broken",
    }
}

pub fn elapsed(record: &Record) -> String {
    let milliseconds = record.ended.map_or(0, |ended| ended - record.started);
    format!("{:.1} s", milliseconds as f64 / 1000.0)
}

/// As seen from here, where that is shorter.
pub fn relative(path: &Path) -> &Path {
    std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok())
        .unwrap_or(path)
}

/// Tasks of a stage as they are named on the command line.
pub fn target(plan: &Plan, stage: &StageName, tasks: &plan::TaskSet) -> String {
    let all = plan.stages.get(stage).is_none_or(|planned| planned.stage.tasks() == tasks.len());
    if all { stage.to_string() } else { format!("{stage}/{tasks}") }
}

/// The indices, or where they are too many for a line the first of them.
pub fn some_of(tasks: &plan::TaskSet) -> String {
    const RANGES: usize = 30;
    match tasks.ranges().get(RANGES) {
        None => tasks.to_string(),
        Some(&(next, _)) => {
            let first: plan::TaskSet = tasks.iter().take_while(|&index| index < next).collect();
            format!("{first},… (--json lists them)")
        }
    }
}

/// A moment, given in Unix milliseconds, in this host's time zone.
pub fn moment(milliseconds: i64) -> String {
    let moment = jiff::Timestamp::from_millisecond(milliseconds).unwrap_or_default();
    moment
        .to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}
