//! A task that failed and may be tried again puts its own job back into the queue.
//!
//! The job keeps its id, so that what depends on it goes on waiting: Slurm looks at a dependency when a job has ended,
//! and a requeued one has not. While the job completes it counts as pending, and takes other limits.

use std::ffi::OsStr;
use std::thread;
use std::time::Duration;

use super::call::{CallError, Slurm, call};
use super::profile::MemoryFlag;
use super::script::slurm_time;
use crate::workflow::Resources;

/// This process's own job.
#[derive(Clone, Debug)]
pub struct OwnJob {
    /// `123`, or `123_4` for a task of an array. (The plain id of one of an array's tasks is that of the array.)
    pub id: String,
    pub slurm: Slurm,
    /// How memory was asked for.
    pub memory: MemoryFlag,
}

/// Why Slurm ends a job with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    TimeLimit,
    /// By someone's wish, or to make room.
    Other,
    /// Slurm gave no answer.
    Unknown,
}

/// Why this job, which was told to end, ends.
pub fn ending(job: &OwnJob) -> Ending {
    let args = ["-h", "-t", "all", "-o", "%r", "-j", &job.id].map(OsStr::new);
    match call(&job.slurm, &job.slurm.squeue, &args) {
        Ok(text) if text.trim() == "TimeLimit" => Ending::TimeLimit,
        Ok(_) => Ending::Other,
        Err(_) => Ending::Unknown,
    }
}

/// Puts the job back into the queue, with `resources` from now on. It is killed soon afterwards.
///
/// `Ok(Some(_))`: it runs again, but with what it had.
///
/// # Errors
/// When it does not run again.
pub fn requeue(job: &OwnJob, resources: &Resources) -> Result<Option<CallError>, CallError> {
    let control = |args: &[&str]| call(&job.slurm, &job.slurm.scontrol, &Vec::from_iter(args.iter().map(OsStr::new)));
    control(&["requeue", &job.id])?;
    let id = format!("JobId={}", job.id);
    let mut limits = Vec::new();
    if let Some(memory) = resources.memory {
        let cpus = u64::from(resources.cpus.max(1));
        limits.push(match job.memory {
            MemoryFlag::Mem => format!("MinMemoryNode={}", memory.mebibytes()),
            MemoryFlag::MemPerCpu => format!("MinMemoryCPU={}", memory.mebibytes().div_ceil(cpus)),
        });
    }
    if let Some(time) = resources.time {
        limits.push(format!("TimeLimit={}", slurm_time(time)));
    }
    let mut refused = None;
    for limit in limits {
        refused = update(&control, &id, &limit).err().or(refused);
    }
    Ok(refused)
}

/// Slurm signals all that runs in the job by now, `scontrol` included: what is cut short is tried again.
fn update(control: &impl Fn(&[&str]) -> Result<String, CallError>, id: &str, limit: &str) -> Result<(), CallError> {
    const TRIES: u32 = 4;
    let mut tried = 0;
    loop {
        match control(&["update", id, limit]) {
            Ok(_) => return Ok(()),
            Err(error) if tried == TRIES => return Err(error),
            Err(_) => tried += 1,
        }
        thread::sleep(Duration::from_millis(250));
    }
}
