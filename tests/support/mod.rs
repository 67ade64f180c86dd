//! Real servers, an ordinary user and fixtures for the tests.
//!
//! What a test needs and may not find here is a *lane*: [`lane`] says so aloud and the test returns, but under
//! `CI=true` nothing may be absent. `tests/run` brings up all of it.

mod apptainer;
mod checkout;
mod cluster;
mod cutter;
pub mod faults;
mod files;
pub mod image;
mod lanes;
pub mod layers;
mod process;
mod registry;
mod sandbox;
mod terminal;
mod valve;
mod wait;

pub use apptainer::apptainer;
pub use checkout::{binary, checkout};
pub use cluster::Cluster;
pub use cutter::Cutter;
pub use files::FileServer;
pub use lanes::{as_root, assert_ordinary_user, genomics, lane, overlays, shared, slurm};
pub use process::{Finished, Running, dvrun, finish};
pub use registry::Registry;
pub use sandbox::Sandbox;
pub use terminal::Terminal;
pub use valve::Valve;
pub use wait::wait_until;
