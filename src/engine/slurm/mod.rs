//! Tasks as SLURM jobs: submit, walk away, see, cancel.
//!
//! | file | is |
//! |---|---|
//! | `profile` | what one cluster wants: account, partition, the names of its options |
//! | `partition` | the first of a profile's partitions that has room for a stage |
//! | `script` | plan → job scripts (pure) |
//! | `array` | task indices → array indices, in chunks that a cluster takes (pure) |
//! | `call` | one command of Slurm's, in a clean environment, with a time limit |
//! | `journal` | the run's journal as jobs: which tasks went into which job |
//! | `parents` | what a stage has to wait for |
//! | `reconcile` | an intent without an outcome: was that job submitted or not? |
//! | `sbatch` | one script → one job, and certainty about it |
//! | `submit` | the graph → jobs, each exactly once |
//! | `requeue` | a failed task puts its own job back into the queue |
//! | `rerun` | tasks again, and what waits for them pointed to the new jobs |
//! | `by_hand` | the same jobs as files for people to submit |
//! | `version` | which Slurm this is |
//! | `check` | a profile against the cluster at hand |
//! | `job_state`, `query` | how jobs stand: `squeue`, then `sacct` |
//! | `step` | a task on another node of an allocation |
//! | `cancel`, `hold`, `wait` | end jobs; hold them back; see them end |
//!
//! Tested with Slurm 22.05; text formats that are the same from 20.11 to 26.05 are asked for, never `--json`.

mod array;
mod by_hand;
mod call;
mod cancel;
mod check;
mod hold;
mod job_state;
mod journal;
mod noted;
mod parents;
mod partition;
mod profile;
mod query;
mod reconcile;
mod requeue;
mod rerun;
mod sbatch;
mod script;
mod step;
mod submit;
mod version;
mod wait;

pub use array::{Chunk, chunks};
pub use by_hand::by_hand;
pub use call::{CallError, Slurm, missing_configuration};
pub use cancel::{CancelError, Cancelled, cancel, stuck, sweep, with_dependants};
pub use check::{Finding, check};
pub use hold::{Hold, hold};
pub use job_state::{JobState, reason_in_words};
pub use journal::{Intent, SubmittedJob, by_stage, given_up, intents, jobs};
pub use partition::{Partition, with_limits};
pub use profile::{Export, GpuFlag, MemoryFlag, SlurmProfile};
pub use query::{JobTask, Jobs, States, active, query, queue};
pub use reconcile::{Submitter, adopt, reconcile, settle};
pub use requeue::{Ending, OwnJob, ending, requeue};
pub use rerun::{Rerun, SlurmRerunError, rerun};
pub use script::{Limits, Program, Script, ScriptError, scripts};
pub use step::{Lifeline, Step, hostnames};
pub use submit::{Missing, StageJobs, Submission, SubmitError, limits, submit};
pub use wait::wait;
