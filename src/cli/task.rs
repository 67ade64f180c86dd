//! `dvrun __task RUN STAGE INDEX`: the inside of a job. For the engine and for job scripts, not for people.

use std::env;
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{Failure, Outcome, exit};
use super::settings::{RuntimeName, Settings, THIS_PROGRAM};
use crate::engine::slurm::{self, MemoryFlag, OwnJob};
use crate::engine::task::{self, Place, Runtime, TimeLimit};
use crate::runtime;
use crate::state::{Journal, Outcome as TaskOutcome, RunDir};
use crate::workflow::StageName;

#[derive(Args)]
pub struct Arguments {
    /// The run's folder
    run: PathBuf,
    stage: String,
    /// The task's index; with --offset, less that
    index: u32,
    #[arg(long, default_value_t = 0)]
    offset: u32,
    #[arg(long)]
    attempt: Option<u32>,
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Which of Slurm's plugins starts ranks
    #[arg(long)]
    mpi: Option<String>,
    #[arg(long, default_value = "dvrun")]
    runtime: RuntimeName,
    /// One rank of a task, started by Slurm; what it used goes into this folder
    #[arg(long, value_name = "FOLDER")]
    rank: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, settings: &Settings) -> Outcome {
    let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let job = text("SLURM_JOB_ID").filter(|_| arguments.attempt.is_none()).map(|id| {
        match (text("SLURM_ARRAY_JOB_ID"), text("SLURM_ARRAY_TASK_ID")) {
            (Some(array), Some(index)) => format!("{array}_{index}"),
            _ => id,
        }
    });
    let run = RunDir::at(arguments.run.clone());
    if let Some(reports) = &arguments.rank {
        return rank(&run, reports, arguments, settings);
    }
    if let Some(name) = text("SLURM_JOB_NAME").filter(|_| job.is_some())
        && given_up(&run, &name, arguments)?
    {
        // Slurm answered so late that the job was submitted anew: this one must not touch anything.
        eprintln!("dvrun: this job was given up; another one does its work");
        return Ok(exit::DONE);
    }
    let in_job = job.is_some();
    let restarts = text("SLURM_RESTART_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0);
    // By its index: the plain id of one of an array's tasks is the array's own, and would mean all of them.
    let own_job = job.clone().map(|id| OwnJob {
        id,
        slurm: settings.slurm(),
        memory: match text("SLURM_MEM_PER_CPU") {
            Some(_) => MemoryFlag::MemPerCpu,
            None => MemoryFlag::Mem,
        },
    });
    let place = Place {
        attempt: arguments.attempt.unwrap_or(restarts),
        time_limit: if job.is_some() { TimeLimit::Slurm } else { TimeLimit::Here },
        job,
        own_job,
        ..place(arguments, settings)?
    };
    let record = task::run(
        &run,
        &StageName(arguments.stage.clone()),
        arguments.index + arguments.offset,
        &place,
    )?;
    if in_job && !record.message.is_empty() {
        // Slurm keeps this in the job's own log; the local engine reads the record.
        eprintln!(
            "dvrun: {}/{}: {}",
            arguments.stage,
            arguments.index + arguments.offset,
            record.message
        );
    }
    Ok(match record.outcome {
        TaskOutcome::Ok => exit::DONE,
        TaskOutcome::Failed { exit } => u8::try_from(exit).unwrap_or(exit::FAILED),
        TaskOutcome::TimedOut => 124,
        TaskOutcome::OutOfMemory => 137,
        TaskOutcome::Cancelled => exit::INTERRUPTED,
        _ => exit::INFRASTRUCTURE,
    })
}

/// Where a task runs, but for its job.
fn place(arguments: &Arguments, settings: &Settings) -> Result<Place, Failure> {
    Ok(Place {
        exe: THIS_PROGRAM.into(),
        scratch: arguments.scratch.clone().unwrap_or_else(|| settings.scratch.clone()),
        host: settings.host.clone(),
        job: None,
        own_job: None,
        attempt: arguments.attempt.unwrap_or(0),
        time_limit: TimeLimit::Slurm,
        host_env: host_environment(settings),
        program: settings.exe.clone(),
        mpi: arguments.mpi.clone(),
        runtime: match arguments.runtime {
            RuntimeName::Dvrun => Runtime::Own,
            RuntimeName::Apptainer => Runtime::Apptainer(apptainer()?),
        },
    })
}

/// Apptainer along `PATH`.
fn apptainer() -> Result<PathBuf, Failure> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).map(|folder| folder.join("apptainer"));
    places.into_iter().find(|place| place.is_file()).ok_or_else(|| {
        Failure::message(
            exit::INFRASTRUCTURE,
            "`runtime: apptainer` is configured, and there is no apptainer on this host's PATH",
        )
        .hint("install it or load its module on this node, or configure `runtime: dvrun`, which needs nothing")
    })
}

/// One rank: its status is the program's own; what keeps it from running is said in the task's log.
fn rank(run: &RunDir, reports: &Path, arguments: &Arguments, settings: &Settings) -> Outcome {
    let place = place(arguments, settings)?;
    let stage = StageName(arguments.stage.clone());
    let exit = task::rank(run, &stage, arguments.index, &place, reports)?;
    Ok(u8::try_from(exit).unwrap_or(exit::FAILED))
}

fn given_up(run: &RunDir, job_name: &str, arguments: &Arguments) -> Result<bool, Failure> {
    let path = run.journal_path();
    let events =
        Journal::read(&path).map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot read {}: {error}", path.display())))?;
    let stage = StageName(arguments.stage.clone());
    Ok(slurm::given_up(&events, job_name, &stage, arguments.index + arguments.offset))
}

/// For stages of `image: none`: who the user is, where programs are, Slurm's own variables; nothing else.
fn host_environment(settings: &Settings) -> Vec<(String, String)> {
    let mut variables = vec![
        (
            "PATH".to_owned(),
            "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin".to_owned(),
        ),
        ("USER".to_owned(), settings.user.clone()),
        ("LOGNAME".to_owned(), settings.user.clone()),
        ("LC_ALL".to_owned(), "C.UTF-8".to_owned()),
    ];
    if let Some(home) = &settings.home {
        variables.push(("HOME".to_owned(), home.to_string_lossy().into_owned()));
    }
    let launcher = ["SLURM_", "PMI_", "PMI2_", "PMIX_"];
    let known = |name: &str| launcher.iter().any(|prefix| name.starts_with(prefix)) || name == "MODULEPATH";
    // A value that is no text says nothing to anybody.
    let environment: Vec<(String, String)> = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let value = |name: &str| environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    variables.extend(runtime::chosen_gpus(value));
    variables.extend(environment.into_iter().filter(|(name, _)| known(name)));
    variables
}
