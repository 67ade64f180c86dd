//! Tasks on the other nodes of an allocation, each a job step.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::call::{CallError, Slurm, call};
use super::script::Program;
use crate::workflow::units::Bytes;

/// The nodes that a list of Slurm's (`c[1-3],d7`) names.
///
/// # Errors
/// [`CallError`] where `scontrol` cannot tell.
pub fn hostnames(slurm: &Slurm, list: &OsStr) -> Result<Vec<String>, CallError> {
    let text = call(slurm, &slurm.scontrol, &["show".as_ref(), "hostnames".as_ref(), list])?;
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

/// How a task gets to another node of the allocation.
#[derive(Clone, Debug)]
pub struct Step {
    /// As Slurm calls it.
    pub node: String,
    /// The allocation's id.
    pub job: String,
    pub slurm: Slurm,
    /// This program, which is there under the same path.
    pub program: Program,
    pub lifeline: Arc<Lifeline>,
}

/// Standard input of steps: nothing is ever written, and it ends when this process does, whatever becomes of it. A step
/// outlives an `srun` that is killed; it sees the end of standard input as long as `srun` is there to tell it, which
/// therefore outlives this process.
#[derive(Debug)]
pub struct Lifeline {
    pub stdin: File,
    _held: PipeWriter,
}

impl Lifeline {
    /// # Errors
    /// No further descriptor.
    pub fn new() -> io::Result<Lifeline> {
        let (stdin, held) = io::pipe()?;
        Ok(Lifeline {
            stdin: OwnedFd::from(stdin).into(),
            _held: held,
        })
    }
}

impl Step {
    /// `srun` of this program.
    ///
    /// The step is held to `memory`, or to all of the job's there. It sees all of the job's cpus on the node, as a task on this
    /// machine does, and shares both with others: what runs at once is decided here, by budgets. With `--exact` Slurm would choose
    /// the cpus, and beside `--overlap` chooses the same ones for each step; without `--overlap` a step waits for the shell that
    /// this program was started from.
    pub fn argv(&self, memory: Option<Bytes>) -> Vec<String> {
        let mut words = vec![
            "srun".to_owned(),
            format!("--jobid={}", self.job),
            format!("--nodelist={}", self.node),
            format!("--mem={}M", memory.map_or(0, Bytes::mebibytes)),
        ];
        let options = ["--nodes=1", "--ntasks=1", "--overlap", "--cpu-bind=none", "--export=ALL"];
        words.extend(options.map(str::to_owned));
        // `srun` makes SIGKILL of SIGTERM; an interrupt it hands on, where it need not show how the tasks stand first.
        words.extend(["--disable-status", "--quiet", "--job-name=dvrun"].map(str::to_owned));
        words.push(self.program.path.to_string_lossy().into_owned());
        words.extend(self.program.options.iter().cloned());
        words
    }

    /// Without the variables that describe the job as a whole: as options of a step they contradict these.
    pub fn env(&self) -> Vec<(String, String)> {
        let all = self.slurm.env.iter();
        all.map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect()
    }
}
