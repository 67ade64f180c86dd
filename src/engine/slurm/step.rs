//! Tasks on the other nodes of an allocation, each a job step.

use std::ffi::OsStr;
use std::process::Command;

use super::call::{CallError, Slurm, call};

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

/// `srun` of what follows, on `node` of the allocation `job`.
///
/// The step sees all of the job's cpus and memory on the node, as a task on this machine does, and shares them with others:
/// what runs at once is decided here, by budgets. With `--exact` Slurm would choose the cpus, and beside `--overlap` chooses
/// the same ones for each step; without `--overlap` a step waits for the shell that this program was started from.
///
/// A step outlives an `srun` that is killed; it sees the end of standard input as long as `srun` is there to tell it.
pub fn step(slurm: &Slurm, job: &str, node: &str) -> Command {
    let mut command = Command::new("srun");
    // Without the variables that describe the job as a whole: as options of a step they contradict these.
    command.env_clear().envs(slurm.env.iter().map(|(name, value)| (name, value)));
    command.arg(format!("--jobid={job}")).arg(format!("--nodelist={node}"));
    command.args(["--nodes=1", "--ntasks=1", "--overlap", "--mem=0", "--cpu-bind=none", "--export=ALL"]);
    // `srun` makes SIGKILL of SIGTERM; an interrupt it hands on, where it need not show how the tasks stand first.
    command.args(["--disable-status", "--quiet", "--job-name=dvrun"]);
    command
}
