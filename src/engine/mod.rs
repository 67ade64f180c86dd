//! What runs: the graph on this machine, or as SLURM jobs; and the inside of a task. Knows no registry.
//!
//! Both ways meet in [`task`]: a local task and a Slurm job each just run `dvrun __task RUN STAGE INDEX`, which checks
//! what it needs, prepares its folders, runs the program and writes the exit record.

mod efficiency;
mod explain;
mod graph;
mod image;
pub mod local;
mod memory;
mod outputs;
mod overlap;
mod previous;
mod process;
mod program;
mod ready;
pub mod rerun;
mod scratch;
mod seen;
pub mod slurm;
mod status;
pub mod task;
#[cfg(test)]
mod testing;

pub use efficiency::{StageUse, efficiency};
pub use explain::{Explanation, explain, telling};
pub use outputs::OutputError;
pub use previous::{inherit, previous};
pub use ready::{Obstacle, obstacles};
pub use status::{RunState, RunStatus, StageStatus, StatusError, TaskState, TaskStatus, status};
