//! `dvrun __task RUN STAGE INDEX`: the inside of a job. For the engine and for job scripts, not for people.

use std::env;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;

use super::failure::{Failure, Outcome, exit};
use super::settings::{Settings, THIS_PROGRAM};
use crate::engine::slurm::{self, MemoryFlag, OwnJob};
use crate::engine::task::{self, Place, TimeLimit};
use crate::plan::PREPARE;
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
    /// It ends with its standard input, which is that of whoever started it on another node
    #[arg(long)]
    step: bool,
}

/// Tells this process to end when its standard input does.
fn end_with_standard_input() {
    std::thread::spawn(|| {
        let mut nothing = Vec::new();
        // An error is an end as well.
        std::io::stdin().read_to_end(&mut nothing).unwrap_or_default();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap_or_default();
    });
}

pub fn run(arguments: &Arguments, settings: &Settings) -> Outcome {
    if arguments.step {
        end_with_standard_input();
    }
    let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let job = text("SLURM_JOB_ID").filter(|_| arguments.attempt.is_none()).map(|id| {
        match (text("SLURM_ARRAY_JOB_ID"), text("SLURM_ARRAY_TASK_ID")) {
            (Some(array), Some(index)) => format!("{array}_{index}"),
            _ => id,
        }
    });
    let run = RunDir::at(arguments.run.clone());
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
        exe: THIS_PROGRAM.into(),
        scratch: arguments.scratch.clone().unwrap_or_else(|| settings.scratch.clone()),
        image_access: settings.image_access,
        host: settings.host.clone(),
        time_limit: if in_job { TimeLimit::Slurm } else { TimeLimit::Here },
        job,
        own_job,
        host_env: match in_job {
            true => environment_in_job(&arguments.stage, settings),
            false => host_environment(settings),
        },
    };
    let record = task::run(
        &run,
        &StageName(arguments.stage.clone()),
        arguments.index + arguments.offset,
        arguments.attempt.unwrap_or(restarts),
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

fn given_up(run: &RunDir, job_name: &str, arguments: &Arguments) -> Result<bool, Failure> {
    let path = run.journal_path();
    let events =
        Journal::read(&path).map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot read {}: {error}", path.display())))?;
    let stage = StageName(arguments.stage.clone());
    Ok(slurm::given_up(&events, job_name, &stage, arguments.index + arguments.offset))
}

/// What a program of `image: none` sees inside a job: what the profile's modules set is for them to say, and what the job that
/// prepares needs to fetch (a proxy, certificates) is its own.
fn environment_in_job(stage: &str, settings: &Settings) -> Vec<(String, String)> {
    match stage == PREPARE || !settings.profile.slurm.modules.is_empty() {
        true => env::vars().chain(for_steps()).collect(),
        false => host_environment(settings),
    }
}

/// For stages of `image: none`: who the user is, where programs are, Slurm's own variables, what the profile sets; nothing else.
pub fn host_environment(settings: &Settings) -> Vec<(String, String)> {
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
    variables.extend(env::vars().filter(|(name, _)| name.starts_with("SLURM_") || name == "MODULEPATH"));
    variables.extend(settings.profile.slurm.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    variables.extend(for_steps());
    variables
}

/// So that an `srun` of the stage's own finds what the job has: a job that was submitted with nothing of its submitter's
/// environment hands on nothing either unless told to, and since 22.05 the cpus of a task are told by another name.
fn for_steps() -> impl Iterator<Item = (String, String)> {
    let in_job = env::var_os("SLURM_JOB_ID").is_some();
    let all = in_job.then(|| ("SLURM_EXPORT_ENV".to_owned(), "ALL".to_owned()));
    let cpus = env::var("SLURM_CPUS_PER_TASK").ok();
    all.into_iter().chain(cpus.map(|cpus| ("SRUN_CPUS_PER_TASK".to_owned(), cpus)))
}
