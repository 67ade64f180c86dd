//! The inside of a job: one task from its index to its exit record. The same here and under Slurm.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::apart::Apart;
use super::group;
use super::local::unstarted;
use super::logs::{Log, Spares};
use super::memory::{Counter, Kills};
use super::outputs::{self, OutputError};
use super::place::{Place, TimeLimit};
use super::program::{self, Output};
use super::ranks::{self, Report};
use super::slurm::{self, Ending, OwnJob};
use super::watch::{Cause, End, Ended, Watch, attended};
use crate::binds::ResolvedBind;
use crate::plan::{self, Plan, Task};
use crate::runtime::{AppError, GpuError, Invocation, Io, LaunchError, LookError, Mount, RuntimeError};
use crate::state::{Outcome, Record, Records, RunDir, StateError};
use crate::store;
use crate::workflow::units::{Bytes, Seconds};
use crate::workflow::{BindMode, Resources, Retry, RetryCause, Stage, StageName};

/// How long records that another host wrote may take to be seen here.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a signal that has ended the program may take to reach the task.
const PATIENCE_FOR_SIGNALS: Duration = Duration::from_secs(1);

/// How long outputs of this host's program may take to be seen here.
const PATIENCE_FOR_OUTPUTS: Duration = Duration::from_secs(2);

/// Why a task could not do its part, apart from its program.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot write the exit record")]
    Record(#[source] io::Error),
    #[error("the plan has no task {stage}/{index}")]
    NoSuchTask { stage: StageName, index: u32 },
    #[error(transparent)]
    Expand(#[from] plan::TaskError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("cannot {doing} {}", path.display())]
    Folder {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot make or remove a private /tmp in {}", path.display())]
    Scratch { path: PathBuf, source: io::Error },
    #[error("bind source {} does not exist", .0.display())]
    BindSource(PathBuf),
    #[error("image {0} is not in the store; the submitting host fetches images")]
    NoImage(String),
    #[error(transparent)]
    Image(#[from] store::StoreError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error("cannot limit memory")]
    Limit(#[source] io::Error),
    #[error("cannot look into image {image}")]
    Look { image: String, source: LookError },
    #[error("cannot watch over the program")]
    Supervise(#[source] io::Error),
    #[error("cannot start {program}")]
    Start { program: String, source: io::Error },
    #[error("stage {0} has no image, and only a script or an argument list can run on the host")]
    NoProgram(StageName),
}

impl TaskError {
    pub fn hint(&self) -> Option<String> {
        match self {
            TaskError::State(error) => error.hint(),
            TaskError::Expand(error) => error.hint(),
            TaskError::Runtime(error) => error.hint(),
            TaskError::Launch(error) => error.hint(),
            TaskError::App(error) => error.hint(),
            TaskError::Gpu(error) => error.hint(),
            TaskError::Image(error) => error.hint(),
            TaskError::NoImage(_) => Some("run `dvrun fetch` where there is a network, with the same cache folder".into()),
            TaskError::BindSource(_) => {
                Some("declare it as `data`, or as the output of a stage that is needed, or make the bind `optional`".into())
            }
            TaskError::Scratch { .. } => Some("let TMPDIR, or `scratch` in the configuration, name a folder that you may write to".into()),
            _ => None,
        }
    }
}

/// Runs one task of `run`, for the `attempt`th time (from 0), in a process of its own: the inside of a job. Gives its final
/// record, which is written already.
///
/// # Errors
/// Only what keeps the record from being written: all else *is* the record.
pub fn run(run: &RunDir, stage: &StageName, index: u32, attempt: u32, place: &Place) -> Result<Record, TaskError> {
    let plan = run.plan_of(stage)?;
    let planned = plan.stages.get(stage).filter(|planned| index < planned.stage.tasks());
    let planned = planned.ok_or_else(|| TaskError::NoSuchTask {
        stage: stage.clone(),
        index,
    })?;
    let records = run.records(stage);
    if !planned.stage.always
        && let Some(parent) = failed_parent(run, &plan, &planned.stage, index)?
    {
        let record = Record {
            outcome: Outcome::UpstreamFailed,
            ended: Some(now()),
            message: format!("{parent} did not end well"),
            ..begun(attempt, place)
        };
        records.write(index, &record).map_err(TaskError::Record)?;
        return Ok(record);
    }
    let watch = Watch::new();
    let task = Numbered { index, attempt };
    let before = Io::now();
    let work = Work {
        run,
        plan: &plan,
        place,
        counter: &Counter::open(),
        spares: None,
    };
    let record = attended(&watch, || once(work, &planned.stage, task, &records, &watch));
    let mut record = record.map_err(TaskError::Supervise)?.map_err(TaskError::Record)?;
    // This process has no other task: what its programs did is what it waited for.
    if let (None, Some(io)) = (record.read, Io::since(before)) {
        (record.read, record.written) = (Some(io.read), Some(io.written));
    }
    if let Some(job) = &place.own_job
        && retries(&planned.stage.retry, &record)
    {
        record.message = try_again(&records, index, &record, &retry_resources(&planned.stage, attempt + 1), job)?;
        if record.message.is_empty() {
            return Ok(record);
        }
    }
    records.write(index, &record).map_err(TaskError::Record)?;
    Ok(record)
}

/// What the tasks of a process have in common.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub run: &'a RunDir,
    pub plan: &'a Plan,
    pub place: &'a Place,
    /// Of the group that this process is in.
    pub counter: &'a Counter,
    /// For whoever has more than one task.
    pub spares: Option<&'a Spares>,
}

/// Which task of a stage, and for which time (from 0).
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered {
    pub index: u32,
    pub attempt: u32,
}

/// Runs a task once whose needs are met. `records` says that it began; that it ended is for the caller to write.
///
/// # Errors
/// A record that cannot be written.
pub(super) fn once(work: Work, stage: &Stage, task: Numbered, records: &Records, watch: &Watch) -> io::Result<Record> {
    let mut record = begun(task.attempt, work.place);
    records.write(task.index, &record)?;
    match perform(work, stage, task, watch) {
        Ok((outcome, message, end)) => {
            record.outcome = outcome;
            record.message = message;
            record.cpu = Some(end.ended.cpu.as_millis() as u64);
            record.memory = Some(end.ended.memory);
            record.read = end.ended.io.map(|io| io.read);
            record.written = end.ended.io.map(|io| io.written);
        }
        Err(error) => {
            record.outcome = Outcome::Broken;
            record.message = with_causes(&error);
        }
    }
    record.ended = Some(now());
    Ok(record)
}

/// The same in a process apart, which writes the record itself. Gives it; or, where it left none, one that says so.
///
/// # Errors
/// A record that cannot be read.
pub(super) fn apart(work: Work, task: Numbered, records: &Records, apart: &Apart, call: &Invocation, watch: &Watch) -> io::Result<Record> {
    let ran = program::apart(call, work.run.path(), apart.stdin(), watch);
    let written = records.read_one(task.index)?;
    let host = apart.host(work.place);
    let message = match (written, ran) {
        (Some(record), Ok(_)) if record.outcome != Outcome::Running && record.attempt == task.attempt => return Ok(record),
        (_, Ok(cause)) if cause != Cause::Own => "the task was stopped before it left a record".to_owned(),
        (_, Ok(_)) => format!("the task ended on {host} without a record: it was killed from outside"),
        (_, Err(error)) => format!("the task could not be started on {host}: {}", with_causes(&error)),
    };
    Ok(Record {
        attempt: task.attempt,
        host: host.to_owned(),
        ..unstarted(Outcome::Broken, message)
    })
}

fn begun(attempt: u32, place: &Place) -> Record {
    Record {
        attempt,
        host: place.host.clone(),
        pid: std::process::id(),
        job: place.job.clone(),
        ..Record::new(Outcome::Running)
    }
}

/// Puts this job back into the queue. While it waits its record says that the task has not ended.
///
/// Gives the message of the record where that fails.
fn try_again(records: &Records, index: u32, record: &Record, resources: &Resources, job: &OwnJob) -> Result<String, TaskError> {
    let waiting = Record {
        outcome: Outcome::Running,
        ended: None,
        message: format!("attempt {}: {}; it runs again", record.attempt + 1, record.message),
        ..record.clone()
    };
    records.write(index, &waiting).map_err(TaskError::Record)?;
    match slurm::requeue(job, resources) {
        Ok(None) => Ok(String::new()),
        Ok(Some(refused)) => {
            let message = format!("{}, with what it had: {refused}", waiting.message);
            records.write(index, &Record { message, ..waiting }).map_err(TaskError::Record)?;
            Ok(String::new())
        }
        Err(error) => Ok(format!("{}; it cannot run again: {error}", record.message)),
    }
}

/// The first needed stage without good records for all of its tasks (or for this index).
fn failed_parent<'a>(run: &RunDir, plan: &'a Plan, stage: &'a Stage, index: u32) -> Result<Option<&'a StageName>, TaskError> {
    for need in &stage.needs {
        let count = plan.stages[&need.stage].stage.tasks();
        let records = run.records(&need.stage);
        let good = || -> io::Result<bool> {
            if need.same_shard {
                return Ok(records.read_one(index)?.is_some_and(|record| record.outcome == Outcome::Ok));
            }
            let all = records.read(count)?;
            Ok(all
                .iter()
                .all(|record| record.as_ref().is_some_and(|record| record.outcome == Outcome::Ok)))
        };
        // A record that says otherwise may be yesterday's as a network file system shows it: look again for a while.
        let mut good_now = good().map_err(TaskError::Record)?;
        let mut waited = Duration::ZERO;
        while !good_now && waited < PATIENCE && !ended_badly(&records, need.same_shard.then_some(index), count)? {
            std::thread::sleep(Duration::from_millis(500));
            waited += Duration::from_millis(500);
            good_now = good().map_err(TaskError::Record)?;
        }
        if !good_now {
            return Ok(Some(&need.stage));
        }
    }
    Ok(None)
}

fn ended_badly(records: &Records, only: Option<u32>, count: u32) -> Result<bool, TaskError> {
    let bad = |record: &Record| record.outcome.is_bad();
    match only {
        Some(index) => Ok(records
            .read_one(index)
            .map_err(TaskError::Record)?
            .is_some_and(|record| bad(&record))),
        None => Ok(records.read(count).map_err(TaskError::Record)?.iter().flatten().any(bad)),
    }
}

/// From expansion to the program's end and its outputs.
fn perform(
    Work {
        run,
        plan,
        place,
        counter,
        spares,
    }: Work,
    stage: &Stage,
    Numbered { index, attempt }: Numbered,
    watch: &Watch,
) -> Result<(Outcome, String, End), TaskError> {
    let mut task = plan::task(plan, &stage.name, index, run.path())?;
    task.resources = retry_resources(stage, attempt);
    outputs::remove(&task.outputs)?;
    for bind in task.binds.iter().filter(|bind| bind.create) {
        create_folder(&bind.source)?;
    }
    // The host's folders are where they are: there is nothing to mount.
    let mounts = if task.image.is_some() { mounts(&task.binds)? } else { Vec::new() };
    let (stdout, stderr) = run.task_logs(&stage.name, index);
    let output = Output {
        stdout: log(spares, &stdout)?,
        stderr: log(spares, &stderr)?,
    };
    let limit = match place.time_limit {
        TimeLimit::Here => task.resources.time.map(|time| Duration::from_secs(time.0)),
        TimeLimit::Slurm => None,
    };
    // A thread has no limits of its own; whoever asks for one got a process.
    let group = match place.time_limit {
        TimeLimit::Here if task.resources.memory.is_some() => group::limit(&task.resources).map_err(TaskError::Limit)?,
        TimeLimit::Here | TimeLimit::Slurm => None,
    };
    let own_counter = group.as_ref().map(|_| Counter::open());
    let kills = Kills::now(own_counter.as_ref().unwrap_or(counter));
    let mut killed_ranks = 0;
    let supervision = program::Supervision { watch, limit };
    let mut end = match &task.image {
        _ if ranks::count(&task) > 1 && place.own_job.is_some() => {
            let (end, kills) = program::by_srun(&task, attempt, run, place, watch, &output)?;
            killed_ranks = kills;
            end
        }
        Some(name) => {
            let image = plan.lock.images.get(name).ok_or_else(|| TaskError::NoImage(name.clone()))?;
            program::in_container(&task, image, mounts, place, supervision, None, &output)?
        }
        None => program::on_host(&task, place, supervision, None, &output)?,
    };
    if place.own_job.is_some() && end.cause == Cause::Own && end.ended.exit == 128 + Signal::SIGTERM as i32 {
        end.cause = watch.told_within(PATIENCE_FOR_SIGNALS);
    }
    let own_count = place.own_job.is_some() || group.as_ref().is_some_and(|group| group.memory);
    let out_of_memory = killed(&task, || kills.since() + killed_ranks, &end, own_count);
    drop(group);
    let (outcome, message) = match out_of_memory {
        Some(message) => (Outcome::OutOfMemory, message),
        None => {
            let (outcome, message) = judge(&task, &with_reason(end.clone(), place))?;
            (outcome, with_damage(message, &end.ended.damage))
        }
    };
    // Who looks for what a failure left finds no empty log.
    let spares = spares.filter(|_| outcome == Outcome::Ok);
    for (path, file) in [(stdout, output.stdout), (stderr, output.stderr)] {
        let log = Log { path: path.clone(), file };
        let over = match spares {
            Some(spares) => spares.keep(log),
            None => log.remove_if_empty(),
        };
        over.map_err(|source| TaskError::Folder {
            doing: "remove the empty",
            path,
            source,
        })?;
    }
    Ok((outcome, message, end))
}

/// One rank of a task, in the process that Slurm started for it: its exit status as a shell reports it. What it used is
/// left in `reports`; the record is the task's.
///
/// # Errors
/// What keeps it from running.
pub fn rank(run: &RunDir, stage: &StageName, index: u32, attempt: u32, place: &Place, reports: &Path) -> Result<i32, TaskError> {
    let plan = run.plan_of(stage)?;
    let mut task = plan::task(&plan, stage, index, run.path())?;
    let planned = &plan.stages[stage].stage;
    task.resources = retry_resources(planned, attempt);
    let mounts = mounts(&task.binds)?;
    let rank = ranks::rank(place)?;
    let stream = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from).map_err(TaskError::Supervise);
    let output = Output {
        stdout: stream(io::stdout().as_fd())?,
        stderr: stream(io::stderr().as_fd())?,
    };
    let counter = Counter::open();
    let (kills, before) = (Kills::now(&counter), Io::now());
    let watch = Watch::new();
    let supervision = program::Supervision {
        watch: &watch,
        limit: None,
    };
    let end = attended(&watch, || match &task.image {
        Some(name) => {
            let image = plan.lock.images.get(name).ok_or_else(|| TaskError::NoImage(name.clone()))?;
            program::in_container(&task, image, mounts, place, supervision, Some(rank), &output)
        }
        None => program::on_host(&task, place, supervision, Some(&rank), &output),
    });
    let end = end.map_err(TaskError::Supervise)??;
    let exit = end.ended.exit;
    let report = Report {
        ended: Ended {
            io: Io::since(before),
            ..end.ended
        },
        kills: kills.since(),
    };
    report.leave(reports, place)?;
    Ok(exit)
}

/// What to say where the kernel killed a process of the task for want of memory, whatever the program made of that.
///
/// Under Slurm the count is the job's own, and Slurm fails the job for it; so it is in a group of the task's own. Elsewhere
/// it is shared with other tasks, and only explains a program that was killed.
fn killed(task: &Task, kills: impl FnOnce() -> u64, end: &End, own_count: bool) -> Option<String> {
    let counts = own_count || end.ended.exit == 128 + Signal::SIGKILL as i32;
    if end.cause != Cause::Own || !counts || kills() == 0 {
        return None;
    }
    let asked = task
        .resources
        .memory
        .map(|memory| format!(" (it asked for {memory})"))
        .unwrap_or_default();
    Some(format!("a process was killed for want of memory{asked}"))
}

/// Under Slurm a program that was told to stop may have reached its time limit: Slurm knows.
fn with_reason(end: End, place: &Place) -> End {
    let Some(job) = place.own_job.as_ref().filter(|_| end.cause != Cause::Own) else {
        return end;
    };
    let cause = match slurm::ending(job) {
        Ending::TimeLimit => Cause::Time,
        Ending::Other => Cause::Stopped,
        Ending::Unknown => end.cause,
    };
    End { cause, ..end }
}

/// What a program's end and its outputs amount to.
fn judge(task: &Task, end: &End) -> Result<(Outcome, String), TaskError> {
    Ok(match end {
        End { cause: Cause::Time, .. } => {
            let limit = task.resources.time.map(|time| format!(" of {time}")).unwrap_or_default();
            (Outcome::TimedOut, format!("the time limit{limit} was reached"))
        }
        End { cause: Cause::Stopped, .. } => (Outcome::Cancelled, "stopped from outside".to_owned()),
        End {
            ended: Ended { exit: 0, .. },
            ..
        } => match outputs::missing_after(&task.outputs, PATIENCE_FOR_OUTPUTS)? {
            None => (Outcome::Ok, String::new()),
            Some(pattern) => (Outcome::OutputMissing, format!("the program ended well, but there is no {pattern}")),
        },
        End {
            ended: Ended { exit, .. }, ..
        } => (Outcome::Failed { exit: *exit }, exit_text(*exit)),
    })
}

/// A program is only told "Input/output error": what it read was never wrong, but not all of it came.
fn with_damage(message: String, damage: &[String]) -> String {
    match damage.first() {
        None => message,
        Some(first) if message.is_empty() => format!("the image is damaged: {first}"),
        Some(first) => format!("{message}; the image is damaged: {first}"),
    }
}

fn exit_text(exit: i32) -> String {
    match exit {
        126 => "exit status 126: found, but not executable".to_owned(),
        127 => "exit status 127: a program was not found".to_owned(),
        129..=192 => match Signal::try_from(exit - 128) {
            Ok(signal) => format!("ended by {signal}"),
            Err(_) => format!("exit status {exit}"),
        },
        _ => format!("exit status {exit}"),
    }
}

/// Bind sources as they really are. All are looked at before anything starts.
fn mounts(binds: &[ResolvedBind]) -> Result<Vec<Mount>, TaskError> {
    let mut mounts = Vec::with_capacity(binds.len());
    for bind in binds {
        match fs::canonicalize(&bind.source) {
            Ok(source) => mounts.push(Mount {
                source,
                target: bind.target.clone(),
                read_only: bind.mode == BindMode::ReadOnly,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && bind.optional => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(TaskError::BindSource(bind.source.clone())),
            Err(source) => {
                return Err(TaskError::Folder {
                    doing: "look at the bind source",
                    path: bind.source.clone(),
                    source,
                });
            }
        }
    }
    Ok(mounts)
}

/// The stage's resources at this attempt: grown by `retry.scale`, once for each retry.
pub fn retry_resources(stage: &Stage, attempt: u32) -> Resources {
    let grown = |amount: u64, factor: f64| (amount as f64 * factor.powi(attempt as i32)).round() as u64;
    let mut resources = stage.resources.clone();
    resources.memory = resources.memory.map(|memory| Bytes(grown(memory.0, stage.retry.scale.memory)));
    resources.time = resources.time.map(|time| Seconds(grown(time.0, stage.retry.scale.time)));
    resources
}

/// Whether `retry` gives a task that ended like this another attempt.
pub fn retries(retry: &Retry, record: &Record) -> bool {
    if retry.when.is_empty() {
        let failed = matches!(
            record.outcome,
            Outcome::Failed { .. } | Outcome::OutOfMemory | Outcome::TimedOut | Outcome::OutputMissing
        );
        return failed && record.attempt < retry.max;
    }
    let cause = match record.outcome {
        Outcome::OutOfMemory => RetryCause::Oom,
        Outcome::TimedOut => RetryCause::Timeout,
        Outcome::Failed { exit } => RetryCause::Exit(exit),
        _ => return false,
    };
    record.attempt < retry.max && retry.when.contains(&cause)
}

fn log(spares: Option<&Spares>, path: &Path) -> Result<File, TaskError> {
    let made = spares.map_or_else(|| Log::create(path), |spares| spares.make(path));
    let log = made.map_err(|source| TaskError::Folder {
        doing: "create",
        path: path.to_owned(),
        source,
    })?;
    Ok(log.file)
}

fn create_folder(path: &Path) -> Result<(), TaskError> {
    fs::create_dir_all(path).map_err(|source| TaskError::Folder {
        doing: "create",
        path: path.to_owned(),
        source,
    })
}

fn with_causes(error: &TaskError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    match error.hint() {
        Some(hint) => format!("{text} ({hint})"),
        None => text,
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
