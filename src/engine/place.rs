//! Where tasks run, as the command line read it from the environment and the configuration.

use std::path::PathBuf;

use super::apart::Apart;
use super::slurm::{OwnJob, Program};
use crate::runtime::{self, ImageAccess};

/// Where a task runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// dvrun itself, to enter containers.
    pub exe: PathBuf,
    /// The folder in which the task's private `/tmp` is made.
    pub scratch: PathBuf,
    /// How an image that is one file becomes a root file system.
    pub image_access: ImageAccess,
    /// The folder in which it is kept what stages' programs read when they start; `None`: nowhere.
    pub read_ahead: Option<PathBuf>,
    pub host: String,
    /// Slurm's id of this job.
    pub job: Option<String>,
    /// Under Slurm: the job that may be put back into the queue.
    pub own_job: Option<OwnJob>,
    pub time_limit: TimeLimit,
    /// The environment of a stage without a container: of the process's own, what such a stage may know.
    pub host_env: Vec<(String, String)>,
    /// All of the process's own, for tasks in a process apart.
    pub whole_env: Vec<(String, String)>,
    /// The names of this machine's GPUs, by number.
    pub gpus: Vec<String>,
    /// This program as other nodes find it.
    pub program: Program,
    /// The plugin of Slurm's that starts ranks.
    pub mpi: Option<String>,
    pub runtime: Runtime,
}

impl Place {
    /// A variable of [`Place::host_env`].
    pub fn variable(&self, name: &str) -> Option<String> {
        let found = self.host_env.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.clone())
    }

    /// The variables that show a task the GPUs of these numbers alone.
    pub(super) fn visible(&self, apart: Option<&Apart>, gpus: &[u32]) -> Vec<(String, String)> {
        let name = |gpu: &u32| match apart {
            Some(Apart::Node { .. }) => gpu.to_string(),
            _ => self.gpus.get(*gpu as usize).cloned().unwrap_or_else(|| gpu.to_string()),
        };
        match gpus {
            [] => Vec::new(),
            gpus => runtime::visible_gpus(&gpus.iter().map(name).collect::<Vec<_>>().join(",")),
        }
    }

    /// The same, with these variables in [`Place::host_env`].
    pub(super) fn with_variables(&self, variables: &[(String, String)]) -> Place {
        let mut place = self.clone();
        place.host_env.retain(|(name, _)| !variables.iter().any(|(own, _)| own == name));
        place.host_env.extend(variables.iter().cloned());
        place
    }
}

/// What runs the containers of tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// [`crate::runtime`].
    #[default]
    Own,
    /// Apptainer, this program of it: for sites that demand it.
    Apptainer(PathBuf),
}

/// Who enforces the stage's time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeLimit {
    Here,
    Slurm,
}
