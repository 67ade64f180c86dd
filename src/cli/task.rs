//! `dvrun __task RUN STAGE INDEX`: the inside of a job. For the engine and for job scripts, not for people.

use std::env;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{Failure, Outcome, exit};
use super::machine;
use super::settings::{RuntimeName, Settings, THIS_PROGRAM};
use crate::engine::slurm::{self, MemoryFlag, OwnJob};
use crate::engine::task;
use crate::engine::{Place, Runtime, TimeLimit};
use crate::plan::PREPARE;
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
    /// It ends with its standard input, which is that of whoever started it on another node
    #[arg(long)]
    step: bool,
    /// Which of Slurm's plugins starts ranks
    #[arg(long)]
    mpi: Option<String>,
    #[arg(long, default_value = "dvrun")]
    runtime: RuntimeName,
    /// One rank of a task, started by Slurm; what it used goes into this folder
    #[arg(long, value_name = "FOLDER")]
    rank: Option<PathBuf>,
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
        time_limit: if in_job { TimeLimit::Slurm } else { TimeLimit::Here },
        job,
        own_job,
        mpi: arguments.mpi.clone(),
        host_env: match in_job {
            true => environment_in_job(&arguments.stage, settings),
            false => host_environment(settings),
        },
        ..place_of(arguments, settings)?
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

/// Where a task runs, but for its job.
pub fn place(runtime: RuntimeName, settings: &Settings) -> Result<Place, Failure> {
    Ok(Place {
        exe: THIS_PROGRAM.into(),
        scratch: settings.scratch.clone(),
        image_access: settings.image_access,
        read_ahead: settings.read_ahead.clone(),
        host: settings.host.clone(),
        job: None,
        own_job: None,
        time_limit: TimeLimit::Slurm,
        host_env: host_environment(settings),
        whole_env: environment(),
        gpus: machine::gpus(),
        program: settings.program.clone(),
        mpi: None,
        runtime: match runtime {
            RuntimeName::Dvrun => Runtime::Own,
            RuntimeName::Apptainer => Runtime::Apptainer(apptainer()?),
        },
    })
}

fn place_of(arguments: &Arguments, settings: &Settings) -> Result<Place, Failure> {
    let place = place(arguments.runtime, settings)?;
    let scratch = arguments.scratch.clone().unwrap_or_else(|| settings.scratch.clone());
    Ok(Place { scratch, ..place })
}

/// All of this process's environment. A value that is no text says nothing to anybody.
fn environment() -> Vec<(String, String)> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
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
    let place = place_of(arguments, settings)?;
    let stage = StageName(arguments.stage.clone());
    let exit = task::rank(run, &stage, arguments.index, arguments.attempt.unwrap_or(0), &place, reports)?;
    Ok(u8::try_from(exit).unwrap_or(exit::FAILED))
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
        true => environment().into_iter().chain(for_steps()).collect(),
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
    let launcher = ["SLURM_", "PMI_", "PMI2_", "PMIX_"];
    let known = |name: &str| launcher.iter().any(|prefix| name.starts_with(prefix)) || name == "MODULEPATH";
    let environment = environment();
    let value = |name: &str| environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    variables.extend(runtime::chosen_gpus(value));
    variables.extend(environment.into_iter().filter(|(name, _)| known(name)));
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
