//! `dvrun run FILE`: the whole workflow on this machine, or on the nodes of the allocation that it is called in.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::file;
use super::machine;
use super::prepare::{self, Wanted};
use super::settings::{Settings, THIS_PROGRAM};
use super::show;
use super::task::place;
use crate::engine::local::{self, Progress, Stop, Summary};
use crate::engine::{Nodes, group};
use crate::engine::{Place, TimeLimit};
use crate::plan::Plan;
use crate::state::{Event, Journal, Mode, RunDir};

/// Run a workflow on this machine
///
/// Inside an allocation of SLURM's, on all its nodes. What an earlier run finished is not run again. Ctrl-C lets running tasks end and starts no more; a second Ctrl-C
/// ends them.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun run pipeline.yaml\n  dvrun run pipeline.yaml --set shards=8 --jobs 4\n  dvrun run pipeline.yaml --force call"
)]
pub struct Arguments {
    #[command(flatten)]
    wanted: Wanted,
    /// Tasks at once (otherwise what cpus and memory allow)
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Begin the run and leave it to itself; `dvrun status`, `wait` and `cancel` see to it
    #[arg(long)]
    detach: bool,
    /// The other half of --detach
    #[arg(long, hide = true, conflicts_with = "detach")]
    detached: bool,
}

impl Arguments {
    /// As though typed.
    pub fn new(wanted: Wanted) -> Arguments {
        Arguments {
            wanted,
            jobs: None,
            detach: false,
            detached: false,
        }
    }
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    // Read before anything is made beside it.
    file::read(&arguments.wanted.file, &arguments.wanted.overrides)?;
    let dir = prepare::dir(&arguments.wanted.file)?;
    if arguments.detach {
        return detach(&dir, global);
    }
    if arguments.detached {
        // No terminal's end is this run's end.
        nix::unistd::setsid().map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    }
    let _lock = prepare::lock(&dir)?;
    if let Some((_, status)) = prepare::settle(&dir, settings)?.filter(|(_, status)| prepare::is_active(status)) {
        return Err(prepare::active(&status));
    }
    let prepared = prepare::plan(&arguments.wanted, global, settings)?;
    show::planned(&prepared.plan, global);
    if prepared.nothing_to_do() {
        let answer = show::summary_json(prepared.latest.as_ref(), &Summary::default(), Duration::ZERO);
        return show::nothing_to_do(&prepared.plan, prepared.latest.as_ref(), &answer, global);
    }
    let nodes = machine::nodes(arguments.jobs, settings)?;
    nodes.fits(&prepared.plan)?;
    if local::wants_gpus(&prepared.plan) {
        for note in machine::gpus_for("")?.notes {
            eprintln!("note: {note}");
        }
    }
    prepare::fetch(&prepared, &arguments.wanted.selected, global, settings)?;
    let run = prepare::create(&prepared, Mode::Local, settings)?;
    drive(&run, &prepared.plan, &nodes, global, settings)
}

/// Starts this command anew in the background, and waits only until its run has begun.
fn detach(dir: &Path, global: &Global) -> Outcome {
    let folder = dir.join(".dvrun");
    let path = folder.join("detached.log");
    let failed = |error: std::io::Error| Failure::message(exit::INFRASTRUCTURE, format!("cannot run in the background: {error}"));
    fs::create_dir_all(&folder).map_err(failed)?;
    let log = File::create(&path).map_err(failed)?;
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| if word == "--detach" { "--detached".into() } else { word });
    let mut child = Command::new(THIS_PROGRAM)
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            // It was over before it began, or while nobody looked.
            eprint!("{}", fs::read_to_string(&path).unwrap_or_default());
            return Ok(status
                .code()
                .map_or(exit::INFRASTRUCTURE, |code| u8::try_from(code).unwrap_or(exit::FAILED)));
        }
        if let Some(run) = RunDir::latest(dir)?
            && Journal::read(&run.journal_path())
                .map_err(failed)?
                .iter()
                .any(|event| matches!(event, Event::Started { pid, .. } if *pid == child.id()))
        {
            if global.json {
                println!("{}", serde_json::json!({"run": run.id(), "pid": child.id(), "log": path}));
            } else if !global.quiet {
                eprintln!(
                    "run {} goes on in process {}; see `dvrun status`, `dvrun wait`",
                    run.id(),
                    child.id()
                );
            }
            return Ok(exit::DONE);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs what `plan` says is to do of `run`, tells how it goes, and writes down when it began and ended.
pub fn drive(run: &RunDir, plan: &Plan, nodes: &Nodes, global: &Global, settings: &Settings) -> Outcome {
    let mut journal = run.journal()?;
    let journal_error = |error: std::io::Error| Failure::message(exit::INFRASTRUCTURE, format!("cannot write the run's journal: {error}"));
    journal
        .append(&Event::Started {
            pid: std::process::id(),
            host: settings.host.clone(),
        })
        .map_err(journal_error)?;
    let started = Instant::now();
    let room = group::make_room();
    let summary = execute(run, plan, nodes, global, settings)?;
    drop(room);
    journal
        .append(&Event::Ended {
            ok: summary.failed + summary.not_run == 0,
        })
        .map_err(journal_error)?;
    show::summary(run, &summary, started.elapsed(), global);
    Ok(match summary {
        Summary { stopped: true, .. } => exit::INTERRUPTED,
        Summary { failed: 0, not_run: 0, .. } => exit::DONE,
        _ => exit::FAILED,
    })
}

fn execute(run: &RunDir, plan: &Plan, nodes: &Nodes, global: &Global, settings: &Settings) -> Result<Summary, Failure> {
    let (stop, stops) = mpsc::channel();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    let handle = signals.handle();
    let listener = std::thread::spawn(move || {
        let mut interrupts = 0;
        for signal in signals.forever() {
            interrupts += 1;
            let wish = if signal == SIGINT && interrupts == 1 {
                Stop::Finish
            } else {
                Stop::Now
            };
            if stop.send(wish).is_err() {
                break;
            }
        }
    });
    let place = Place {
        time_limit: TimeLimit::Here,
        ..place(settings.runtime, settings)?
    };
    let mut progress = |event: Progress| show::progress(run, plan, &event, global);
    let summary = local::run(run, plan, nodes, &place, stops, &mut progress);
    handle.close();
    listener
        .join()
        .map_err(|_| Failure::message(exit::INFRASTRUCTURE, "the signal handler panicked"))?;
    Ok(summary?)
}
