//! What runs: the graph on this machine, or as SLURM jobs; and the inside of a task. Knows no registry.
//!
//! Both ways meet in [`task`]: it prepares a task's folders, runs its program and judges its end. Under Slurm a job runs
//! `dvrun __task RUN STAGE INDEX`, which also checks what the task needs; here [`local`] runs it on a thread of its own.

mod apart;
mod efficiency;
mod explain;
mod graph;
pub mod group;
mod image;
pub mod local;
mod logs;
mod memory;
mod nodes;
mod outputs;
mod overlap;
mod place;
mod previous;
mod program;
mod ranks;
mod ready;
pub mod rerun;
mod scratch;
mod seen;
pub mod slurm;
mod status;
pub mod task;
#[cfg(test)]
mod testing;
mod watch;
mod workers;

pub use efficiency::{StageUse, efficiency};
pub use explain::{Explanation, explain, telling};
pub use nodes::{Node, Nodes};
pub use outputs::OutputError;
pub use place::{Place, Runtime, TimeLimit};
pub use previous::{Makers, inherit, makers, previous};
pub use ready::{Obstacle, Provision, obstacles};
pub use status::{RunState, RunStatus, StageStatus, StatusError, TaskState, TaskStatus, status};
