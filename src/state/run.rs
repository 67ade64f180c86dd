//! One run's folder, and the list of them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Journal, Records, read_plan};
use crate::plan::{self, Plan};
use crate::workflow::{StageName, Workflow};

/// Who runs the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Local,
    Slurm,
}

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    pub mode: Mode,
    pub user: String,
    pub host: String,
    /// Unix milliseconds.
    pub created: i64,
    /// dvrun's version.
    pub version: String,
}

/// `prepare.json`: what the run's first job brings into the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Preparation {
    /// The images and data sets that are declared; its stages are in the plan.
    pub workflow: Workflow,
    /// No server is asked.
    pub offline: bool,
}

/// What can be wrong with a run folder.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is damaged", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("{} was written by another version of dvrun (format {found}, this one reads {})", path.display(), plan::VERSION)]
    Version { path: PathBuf, found: u64 },
    #[error("no run {id} in {}", dir.display())]
    NoSuchRun { id: String, dir: PathBuf },
}

impl StateError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            StateError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("free some space where the workflow lies; the same command then goes on".into())
                }
                _ => None,
            },
            StateError::Damaged { path, .. } => {
                let run = path.parent().unwrap_or(path);
                Some(format!("move {} away: what only it knows runs again", run.display()))
            }
            StateError::Version { .. } => Some("use the version of dvrun that the run was made with".into()),
            StateError::NoSuchRun { .. } => Some("`ls .dvrun/runs` lists them; the end of an id is enough".into()),
        }
    }
}

/// An existing run folder.
#[derive(Clone, Debug, PartialEq)]
pub struct RunDir {
    path: PathBuf,
}

const PREPARATION: &str = "prepare.json";

/// Where a run folder's name begins while it is being made.
const DRAFT: &str = ".new-";

/// A run folder that is not yet one: dropped, or left by a crash, it is no run.
#[derive(Debug)]
pub struct Draft {
    run: RunDir,
    path: PathBuf,
}

impl Draft {
    /// The folder as it is now, to put records into.
    pub fn run(&self) -> &RunDir {
        &self.run
    }

    /// Makes it a run, whole.
    pub fn publish(self) -> Result<RunDir, StateError> {
        fs::rename(&self.run.path, &self.path).map_err(at("create", &self.path))?;
        if let Some(runs) = self.path.parent() {
            sync_folder(runs)?;
        }
        Ok(RunDir { path: self.path })
    }
}

impl RunDir {
    /// The folder of all runs of the workflow in `dir`.
    pub fn all(dir: &Path) -> PathBuf {
        dir.join(".dvrun").join("runs")
    }

    /// Begins a new run folder with its plan. It is no run until [`Draft::publish`]. The caller holds the workflow's lock.
    pub fn draft(dir: &Path, info: &RunInfo, plan: &Plan) -> Result<Draft, StateError> {
        let runs = RunDir::all(dir);
        fs::create_dir_all(&runs).map_err(at("create", &runs))?;
        // Ids sort by age, also when two runs begin within a moment, or on hosts whose clocks differ.
        let latest = RunDir::latest(dir)?
            .map(|run| run.info())
            .transpose()?
            .map_or(i64::MIN, |info| info.created);
        let info = RunInfo {
            created: info.created.max(latest.saturating_add(1)),
            ..info.clone()
        };
        let id = jiff::Timestamp::from_millisecond(info.created)
            .unwrap_or_default()
            .strftime("%Y%m%d-%H%M%S-%3f")
            .to_string();
        sweep_drafts(&runs)?;
        let path = runs.join(format!("{DRAFT}{id}"));
        for folder in ["records", "scripts", "logs"] {
            fs::create_dir_all(path.join(folder)).map_err(at("create", &path))?;
        }
        let run = RunDir { path };
        run.write_json("run.json", &info)?;
        run.write_json("plan.json", plan)?;
        Ok(Draft { run, path: runs.join(id) })
    }

    /// The run with this id, or whose id ends in it.
    pub fn open(dir: &Path, id: &str) -> Result<RunDir, StateError> {
        RunDir::list(dir)?
            .into_iter()
            .rev()
            .find(|run| run.id().ends_with(id))
            .ok_or_else(|| StateError::NoSuchRun {
                id: id.to_owned(),
                dir: dir.to_owned(),
            })
    }

    /// A run by its own path.
    pub fn at(path: PathBuf) -> RunDir {
        RunDir { path }
    }

    /// The newest run, if there is one.
    pub fn latest(dir: &Path) -> Result<Option<RunDir>, StateError> {
        Ok(RunDir::list(dir)?.pop())
    }

    /// All runs, oldest first.
    pub fn list(dir: &Path) -> Result<Vec<RunDir>, StateError> {
        let runs = RunDir::all(dir);
        let entries = match fs::read_dir(&runs) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("read", &runs)(error)),
        };
        let mut list = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at("read", &runs))?;
            // Ids begin with a date; what people and tools put here is none of them.
            if entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
                list.push(RunDir { path: entry.path() });
            }
        }
        list.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(list)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    pub fn info(&self) -> Result<RunInfo, StateError> {
        self.read_json("run.json")
    }

    pub fn plan(&self) -> Result<Plan, StateError> {
        let path = self.path.join("plan.json");
        read_plan::whole(&fs::read(&path).map_err(at("read", &path))?, &path)
    }

    /// The plan with `stage` and what that needs, and without the other stages: as much as a task has to know.
    ///
    /// # Errors
    /// As [`RunDir::plan`].
    pub fn plan_of(&self, stage: &StageName) -> Result<Plan, StateError> {
        let path = self.path.join("plan.json");
        read_plan::of_stage(&fs::read(&path).map_err(at("read", &path))?, &path, stage)
    }

    /// Puts `plan` in the place of the run's plan, whole.
    pub fn replace_plan(&self, plan: &Plan) -> Result<(), StateError> {
        let draft = ".new-plan.json";
        self.write_json(draft, plan)?;
        let path = self.path.join("plan.json");
        fs::rename(self.path.join(draft), &path).map_err(at("replace", &path))?;
        sync_folder(&self.path)
    }

    /// Leaves images and data to the run's first job.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn prepare_later(&self, preparation: &Preparation) -> Result<(), StateError> {
        self.write_json(PREPARATION, preparation)
    }

    /// What was left to the run's first job.
    ///
    /// # Errors
    /// A run that left nothing to it, or a folder that cannot be read.
    pub fn preparation(&self) -> Result<Preparation, StateError> {
        self.read_json(PREPARATION)
    }

    pub fn journal_path(&self) -> PathBuf {
        self.path.join("journal.jsonl")
    }

    pub fn journal(&self) -> Result<Journal, StateError> {
        let path = self.journal_path();
        Journal::open(&path).map_err(at("open", &path))
    }

    pub fn records(&self, stage: &StageName) -> Records {
        Records::new(self.path.join("records").join(&stage.0))
    }

    /// Brings the records of these stages to disk. Those of very many come there with all of their file system's: one call, in the
    /// place of one for each.
    ///
    /// # Errors
    /// A disk that takes no more, or a folder that is gone.
    pub fn sync_records<'a>(&self, stages: impl Iterator<Item = &'a StageName> + Clone) -> Result<(), StateError> {
        const FEW: usize = 64;
        let folder = self.path.join("records");
        if stages.clone().nth(FEW).is_some() {
            let opened = fs::File::open(&folder).map_err(at("open", &folder))?;
            return nix::unistd::syncfs(&opened).map_err(|errno| at("sync", &folder)(errno.into()));
        }
        for stage in stages {
            let records = self.records(stage);
            match records.sync() {
                // Of a stage that was stopped before its first task.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(at("sync", records.path()))?,
            }
        }
        Ok(())
    }

    pub fn script(&self, stage: &StageName) -> PathBuf {
        self.path.join("scripts").join(format!("{stage}.sbatch"))
    }

    /// The folder of a stage's logs; the engine makes it before any task starts.
    pub fn logs(&self, stage: &StageName) -> PathBuf {
        self.path.join("logs").join(&stage.0)
    }

    /// A task's standard output and standard error.
    pub fn task_logs(&self, stage: &StageName, index: u32) -> (PathBuf, PathBuf) {
        let folder = self.logs(stage);
        (folder.join(format!("{index}.out")), folder.join(format!("{index}.err")))
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, StateError> {
        let path = self.path.join(name);
        let text = fs::read(&path).map_err(at("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path, source })
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let path = self.path.join(name);
        let text = serde_json::to_vec_pretty(value).map_err(|source| StateError::Damaged {
            path: path.clone(),
            source,
        })?;
        let mut file = fs::File::create(&path).map_err(at("create", &path))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(at("write", &path))
    }
}

/// Removes what crashes left of earlier drafts. Whoever makes one holds the workflow's lock: there is no living draft.
fn sweep_drafts(runs: &Path) -> Result<(), StateError> {
    for entry in fs::read_dir(runs).map_err(at("read", runs))? {
        let entry = entry.map_err(at("read", runs))?;
        if entry.file_name().as_encoded_bytes().starts_with(DRAFT.as_bytes()) {
            fs::remove_dir_all(entry.path()).map_err(at("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn sync_folder(path: &Path) -> Result<(), StateError> {
    fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(at("sync", path))
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StateError + 'a {
    move |source| StateError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}
