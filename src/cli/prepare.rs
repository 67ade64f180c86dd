//! What `plan`, `fetch`, `run` and `submit` do first, in this order: read, resolve, look at what ran before, plan, fetch.

use std::error::Error;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::args::Global;
use super::failure::{Failure, exit};
use super::file::{self, Overrides};
use super::images::{self, Network};
use super::settings::Settings;
use crate::engine::rerun::Reach;
use crate::engine::slurm;
use crate::engine::{self, Provision, RunState, RunStatus};
use crate::fetch;
use crate::lock::Lock;
use crate::plan::{self, Plan, Selection};
use crate::registry::Session;
use crate::state::{Mode, Preparation, RunDir, RunInfo};
use crate::workflow::{StageName, Workflow};

/// Which part of the workflow, and how.
#[derive(Args, Clone, Debug, Default)]
pub struct Selected {
    /// Only these stages (repeatable)
    #[arg(long, visible_alias = "stage", value_name = "STAGE")]
    only: Vec<String>,
    /// This stage and all that needs it
    #[arg(long, value_name = "STAGE")]
    from: Option<String>,
    /// This stage and all that it needs
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    /// Run this stage again though it is done (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Use only what is in the store; ask no server
    #[arg(long)]
    offline: bool,
}

impl Selected {
    /// This stage again, alone or with what needs it.
    pub fn again(stage: &StageName, reach: Reach) -> Selected {
        let stage = stage.0.clone();
        Selected {
            only: (reach == Reach::Only).then(|| stage.clone()).into_iter().collect(),
            from: (reach != Reach::Only).then(|| stage.clone()),
            force: vec![stage],
            ..Selected::default()
        }
    }

    /// Whether it is the whole workflow, each stage once.
    pub fn is_everything(&self) -> bool {
        self.selection() == Selection::default()
    }

    fn selection(&self) -> Selection {
        let names = |names: &[String]| names.iter().cloned().map(StageName).collect();
        Selection {
            only: names(&self.only),
            from: self.from.clone().map(StageName),
            until: self.until.clone().map(StageName),
            force: names(&self.force),
        }
    }

    pub fn network(&self) -> Network {
        self.offline.into()
    }
}

/// What of a workflow is meant: `plan`, `run` and `submit` are told alike.
#[derive(Args, Clone, Debug)]
pub struct Wanted {
    /// The workflow file
    pub file: PathBuf,
    #[command(flatten)]
    pub overrides: Overrides,
    #[command(flatten)]
    pub selected: Selected,
}

/// A workflow on its way to being run.
pub struct Prepared {
    pub workflow: Workflow,
    pub plan: Plan,
    /// The newest run of this file, which this one carries on.
    pub latest: Option<RunDir>,
    /// What is left to the run's first job.
    pub preparation: Option<Preparation>,
}

impl Prepared {
    pub fn nothing_to_do(&self) -> bool {
        self.plan.stages.values().all(|stage| stage.todo.is_empty())
    }
}

/// Reads, resolves and plans; nothing is fetched but what names mean, nothing is written but the store's tag cache.
pub fn plan(wanted: &Wanted, global: &Global, settings: &Settings) -> Result<Prepared, Failure> {
    let workflow = file::read(&wanted.file, &wanted.overrides)?;
    let lock = resolve(&workflow, wanted.selected.network(), global, settings)?;
    decide(workflow, &lock, &wanted.selected)
}

/// As [`plan`], to look at: where servers give no answer, with what they last said.
pub fn preview(wanted: &Wanted, global: &Global, settings: &Settings) -> Result<Prepared, Failure> {
    let workflow = file::read(&wanted.file, &wanted.overrides)?;
    let lock = match resolve(&workflow, wanted.selected.network(), global, settings) {
        Err(failure) if failure.code() == exit::INFRASTRUCTURE && wanted.selected.network() == Network::Use => {
            eprintln!("{}\nnote: this plan is made without asking again", failure.text());
            resolve(&workflow, Network::Offline, global, settings)?
        }
        other => other?,
    };
    for (name, image) in lock.images.iter().filter(|(_, image)| image.digest.is_none()) {
        eprintln!(
            "note: the digest of image `{name}` ({}) is unknown; what was done with it counts as changed",
            image.source
        );
    }
    decide(workflow, &lock, &wanted.selected)
}

fn decide(workflow: Workflow, lock: &Lock, selected: &Selected) -> Result<Prepared, Failure> {
    let (previous, latest) = engine::previous(&workflow.file)?;
    let plan = plan::plan(&workflow, lock, &previous, &selected.selection())?;
    Ok(Prepared {
        workflow,
        plan,
        latest,
        preparation: None,
    })
}

fn resolve(workflow: &Workflow, network: Network, global: &Global, settings: &Settings) -> Result<Lock, Failure> {
    with_session(network, global, settings, async |session| {
        Ok(fetch::resolve(session, workflow).await?)
    })
}

/// Brings the images and data sets of all stages that run into the store, and looks whether anything else keeps them from
/// running.
pub fn fetch(prepared: &Prepared, selected: &Selected, global: &Global, settings: &Settings) -> Result<(), Failure> {
    let running = prepared.plan.stages.values().filter(|stage| !stage.todo.is_empty());
    let images: Vec<&str> = running.filter_map(|stage| stage.stage.image.as_deref()).collect();
    with_session(selected.network(), global, settings, async |session| {
        Ok(fetch::all(session, &prepared.workflow, &prepared.plan.lock, &|image| images.contains(&image)).await?)
    })?;
    check(&prepared.plan, Provision::There)
}

/// # Errors
/// All that keeps what is to run from running, as far as that can be known.
pub fn check(plan: &Plan, provision: Provision) -> Result<(), Failure> {
    match engine::obstacles(plan, provision)?.as_slice() {
        [] => Ok(()),
        obstacles => Err(Failure::all(
            exit::USAGE,
            obstacles.iter().map(|obstacle| (obstacle as &dyn Error, obstacle.hint())),
        )),
    }
}

/// Brings all of the workflow's images and data sets into the store, whether a stage runs or not.
pub fn fetch_all(prepared: &Prepared, global: &Global, settings: &Settings) -> Result<(), Failure> {
    with_session(Network::Use, global, settings, async |session| {
        Ok(fetch::all(session, &prepared.workflow, &prepared.plan.lock, &|_| true).await?)
    })
}

/// How the newest run stands, settled as far as can be: whether an interrupted submission went through is found out, and jobs
/// that can never run are taken out of the queue. `None`: there is none, or it ran on this machine, whose lock is held.
pub fn settle(dir: &Path, settings: &Settings) -> Result<Option<(RunDir, RunStatus)>, Failure> {
    let Some(latest) = RunDir::latest(dir)? else { return Ok(None) };
    if latest.info()?.mode == Mode::Local {
        return Ok(None);
    }
    let slurm = settings.slurm();
    let plan = latest.plan()?;
    slurm::settle(&latest, &slurm)?;
    let mut status = engine::status(&latest, &plan, Some(&slurm))?;
    if !status.stuck.is_empty() {
        slurm::sweep(&latest, &plan, &slurm, PATIENCE)?;
        status = engine::status(&latest, &plan, Some(&slurm))?;
    }
    Ok(Some((latest, status)))
}

/// How long cancelled jobs are given to leave the queue.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a run may still write its outputs.
pub fn is_active(status: &RunStatus) -> bool {
    status.state == RunState::Active || status.unanswered || !status.jobs.is_empty()
}

/// Why another run cannot begin while this one has jobs: both would write the same outputs.
pub fn active(status: &RunStatus) -> Failure {
    let what = match status.unanswered {
        true => "may still have jobs on SLURM, which gives no answer".to_owned(),
        false => format!("still has jobs on SLURM: {}", status.jobs.join(" ")),
    };
    Failure::message(exit::USAGE, format!("run {} {what}", status.run))
        .hint("see `dvrun status`; wait until it has ended, or end it with `dvrun cancel`")
}

pub fn with_session<T>(
    network: Network,
    global: &Global,
    settings: &Settings,
    work: impl AsyncFnOnce(&Session<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    images::with_session(images::tags(network, settings), global, settings, work)
}

/// Makes the run folder, with the records of what need not run again.
pub fn create(prepared: &Prepared, mode: Mode, settings: &Settings) -> Result<RunDir, Failure> {
    let info = RunInfo {
        mode,
        user: settings.user.clone(),
        host: settings.host.clone(),
        created: jiff::Timestamp::now().as_millisecond(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let draft = RunDir::draft(&prepared.workflow.dir, &info, &prepared.plan)?;
    if let Some(preparation) = &prepared.preparation {
        draft.run().prepare_later(preparation)?;
    }
    if let Some(latest) = &prepared.latest {
        engine::inherit(latest, draft.run(), &prepared.plan)?;
    }
    Ok(draft.publish()?)
}

/// Held while one `run` or `submit` works on a workflow; the kernel lets go of it whatever becomes of the process.
pub struct WorkflowLock {
    _file: File,
}

/// Takes the workflow's lock.
///
/// # Errors
/// Another dvrun is at work here.
pub fn lock(dir: &Path) -> Result<WorkflowLock, Failure> {
    let folder = dir.join(".dvrun");
    let path = folder.join("lock");
    let failed = |error: std::io::Error| {
        let failure = Failure::message(exit::INFRASTRUCTURE, format!("cannot lock {}: {error}", path.display()));
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                failure.hint("runs are kept beside the workflow file: copy it into a folder that you may write to")
            }
            _ => failure,
        }
    };
    fs::create_dir_all(&folder).map_err(failed)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(WorkflowLock { _file: file }),
        Err(TryLockError::WouldBlock) => {
            let busy = format!("another dvrun is running or submitting the workflow in {}", dir.display());
            Err(Failure::message(exit::USAGE, busy).hint("see `dvrun status`; wait until it has ended, or end it with `dvrun cancel`"))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The folder of a workflow file, for its lock, before the file is read.
pub fn dir(file: &Path) -> Result<PathBuf, Failure> {
    let file = fs::canonicalize(file).map_err(|error| Failure::message(exit::USAGE, format!("cannot read {}: {error}", file.display())))?;
    Ok(file.parent().unwrap_or(Path::new("/")).to_owned())
}
