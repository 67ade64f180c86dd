//! The tree of a file → a [`Workflow`], or every mistake in it.
//!
//! One file here for each part of the workflow file; each reads what it can and reports what it cannot, so that one
//! mistake hides no other.

mod array;
mod binds;
mod command;
mod fields;
mod graph;
mod names;
mod outputs;
mod resources;
mod sources;
mod stage;
mod templates;
mod values;
mod whole;

pub use values::{params, scalar};
pub use whole::check;
