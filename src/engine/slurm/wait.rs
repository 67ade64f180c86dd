//! Seeing jobs end. Whoever waits only looks: when it goes away, the jobs stay.

use std::thread;
use std::time::Duration;

use super::call::Slurm;
use crate::engine::status::{RunState, RunStatus, StatusError, TaskState, status};
use crate::plan::Plan;
use crate::state::RunDir;

/// Looks again and again until no job of the run will go on by itself; `see` is shown each status.
///
/// A controller that gives no answer is asked again, however long that takes.
///
/// # Errors
/// [`StatusError`] when the run folder cannot be read.
pub fn wait(run: &RunDir, plan: &Plan, slurm: &Slurm, mut see: impl FnMut(&RunStatus)) -> Result<RunStatus, StatusError> {
    const SHORTEST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);
    /// At tasks whose job is gone without a word.
    const LOOKS: u32 = 4;
    let mut pause = SHORTEST;
    let mut before = None;
    let mut unknown = 0;
    loop {
        let now = status(run, plan, Some(slurm))?;
        see(&now);
        if now.state != RunState::Active && !now.unanswered {
            // Records and accounts may lag behind the queue by some seconds.
            let known = now.stages.values().all(|stage| !stage.counts.contains_key(&TaskState::Unknown));
            if known || unknown == LOOKS {
                return Ok(now);
            }
            unknown += 1;
        }
        // Quick while something happens, slow for a queue that stands still.
        let counts: Vec<_> = now.stages.values().map(|stage| stage.counts.clone()).collect();
        pause = if before.as_ref() == Some(&counts) {
            (pause * 3 / 2).min(LONGEST)
        } else {
            SHORTEST
        };
        before = Some(counts);
        thread::sleep(pause);
    }
}
