//! The workflow file, version 1: read with positions, checked whole, every mistake reported at once.
//!
//! [`check`] is the only way to a [`Workflow`]; what comes after never meets an unchecked one. No I/O but the text
//! it is handed.

mod check;
mod edit;
mod model;
mod packed;
pub(crate) mod paths;
mod problem;
mod raw;
pub(crate) mod scope;
pub(crate) mod template;
pub mod units;

pub use check::{check, params, scalar};
pub use edit::{Edited, Wanted, resources as edit_resources};
pub use model::{
    App, Array, Bind, BindMode, Command, DataFile, DataSet, DataSource, Image, Need, Resources, Retry, RetryCause, Scale, SlurmOptions,
    Stage, StageName, StageUser, Template, Workflow,
};
pub use packed::PackedApp;
pub use problem::Problem;
pub(crate) use problem::nearest;
pub use template::TemplateError;
