//! `dvrun logs STAGE[/INDEX]`: what tasks printed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::failure::{Failure, Outcome, exit};
use super::select::{Selection, find_run};
use super::show;
use crate::engine;
use crate::state::{Outcome as TaskOutcome, RunDir};
use crate::workflow::StageName;

/// Print what a stage's tasks wrote
///
/// Of tasks that were done before the run began, what they wrote in the run that made them.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun logs call\n  dvrun logs call/3 --stderr\n  dvrun logs call/3 -f")]
pub struct Arguments {
    /// The stage, or one task of it
    #[arg(value_name = "STAGE[/INDEX]")]
    selection: Selection,
    /// The run (its id or the end of it); the newest otherwise
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Follow what is written until the task ends
    #[arg(long, short)]
    follow: bool,
    /// Standard error instead of standard output
    #[arg(long)]
    stderr: bool,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let run = find_run(arguments.run.as_deref())?;
    let plan = run.plan()?;
    let stage = arguments.selection.in_plan(&plan)?;
    let tasks = plan.stages[&stage].stage.tasks();
    let indices = match arguments.selection.index {
        Some(index) if index < tasks => index..index + 1,
        Some(index) => {
            return Err(Failure::message(
                exit::USAGE,
                format!("{stage} has tasks 0 to {}, not {index}", tasks - 1),
            ));
        }
        None => 0..tasks,
    };
    let several = indices.len() > 1;
    let makers = engine::makers(&run, &plan, &stage)?;
    let mut gone = 0;
    let mut out = io::stdout().lock();
    for index in indices {
        let Some(maker) = makers.of(index) else {
            gone += 1;
            continue;
        };
        let (stdout, stderr) = maker.task_logs(&stage, index);
        let path = if arguments.stderr { stderr } else { stdout };
        let printed = print(maker, &stage, index, &path, several, arguments.follow, &mut out);
        printed.map_err(|error| Failure::new(exit::INFRASTRUCTURE, &LogError { path, source: error }, None))?;
    }
    if gone > 0 {
        eprintln!(
            "note: {} ran in an earlier run that is gone, and its logs with it",
            show::count(gone, "task")
        );
    }
    Ok(exit::DONE)
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
struct LogError {
    path: PathBuf,
    source: io::Error,
}

fn print(run: &RunDir, stage: &StageName, index: u32, path: &Path, headed: bool, follow: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut position = 0;
    let mut buffer = vec![0; 1 << 16];
    let mut headed = headed;
    loop {
        // Asked before reading: what is written before the end is then read after it.
        let over = !follow
            || run
                .records(stage)
                .read_one(index)?
                .is_some_and(|record| record.outcome != TaskOutcome::Running);
        match File::open(path) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(position))?;
                loop {
                    let count = file.read(&mut buffer)?;
                    if count == 0 {
                        break;
                    }
                    if std::mem::take(&mut headed) {
                        writeln!(out, "==> {stage}/{index} <==")?;
                    }
                    out.write_all(&buffer[..count])?;
                    position += count as u64;
                }
                out.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if over {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
