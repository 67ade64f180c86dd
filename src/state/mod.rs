//! The run folder: what was meant, what was done, how each task ended.
//!
//! ```text
//! .dvrun/                     beside the workflow file
//! ├── lock                    held (flock) by the one `run` or `submit` at work here
//! └── runs/ID/                ID = 20260131-142530-123 (UTC, to the millisecond: sorts by age)
//!     ├── run.json            what this run is: mode, user, host, dvrun's version
//!     ├── plan.json           crate::plan::Plan: all that a task needs
//!     ├── prepare.json        what the first job brings into the store, where that was not done at submission
//!     ├── journal.jsonl       intents and effects, appended and synced, one JSON object a line
//!     ├── records/STAGE       one slot of fixed size a task: JSON padded with spaces, NUL where none was written
//!     ├── scripts/STAGE.sbatch
//!     └── logs/STAGE/INDEX.{out,err}    and slurm-JOB.log, what Slurm itself had to say
//! ```

mod journal;
mod read_plan;
mod record;
mod run;

pub use journal::{Event, Journal};
pub use record::{Outcome, Record, Records};
pub use run::{Draft, Mode, Preparation, RunDir, RunInfo, StateError};
