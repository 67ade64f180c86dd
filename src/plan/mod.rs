//! What runs, and why: plain data, made without I/O, written once to the run folder and read by every task.
//!
//! [`plan`] decides for whole stages and never expands a task; [`task`] expands one.

mod decide;
mod identity;
mod model;
mod prepare;
mod summary;
mod task;
mod taskset;

pub use decide::{PlanError, Previous, PreviousStage, Selection, plan};
pub use identity::Parts;
pub use model::{Plan, Reason, StagePlan, Task, VERSION};
pub use prepare::{PREPARE, complete, prepare_first};
pub use summary::{StageSummary, summary};
pub use task::{TaskError, task};
pub use taskset::TaskSet;
