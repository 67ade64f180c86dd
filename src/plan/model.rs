//! The plan as it is written to the run folder, and a task as it is run.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Parts, TaskSet};
use crate::binds::ResolvedBind;
use crate::lock::Lock;
use crate::oci::Digest;
use crate::workflow::{Command, Resources, Stage, StageName, StageUser};

/// The change rule of `plan.json`: readers refuse a version that they do not know.
pub const VERSION: u32 = 1;

/// Self-contained: a task needs nothing but this and its index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub version: u32,
    pub name: String,
    /// Absolute path of the workflow file, and its folder.
    pub file: PathBuf,
    pub dir: PathBuf,
    pub params: IndexMap<String, Value>,
    pub lock: Lock,
    /// Topological order.
    pub stages: IndexMap<StageName, StagePlan>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StagePlan {
    pub stage: Stage,
    /// Hash over image digest, command, env, binds' targets, inputs' and parents' identities; not resources.
    pub identity: Digest,
    /// What the identity is made of; empty in plans of earlier versions.
    #[serde(default)]
    pub parts: Parts,
    /// Indices to run, ascending, as closed ranges; empty when all is done.
    pub todo: TaskSet,
    pub reason: Reason,
}

/// Why a stage runs, or does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Done,
    NeverRan,
    /// Some tasks are missing or failed earlier.
    Unfinished,
    /// The identity differs from the last run's.
    Changed,
    /// An output of a finished task is gone (the first such pattern or path).
    OutputMissing(String),
    /// A stage that it needs runs.
    ParentRuns(StageName),
    Forced,
    /// The selection leaves it out.
    NotSelected,
    /// It brings images and data into the store, for the others.
    Prepares,
}

/// One task, every template expanded.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub stage: StageName,
    pub index: u32,
    /// Key of [`Lock::images`]; `None`: the host.
    pub image: Option<String>,
    pub command: Command,
    /// What the stage declares, in its order.
    pub env: Vec<(String, String)>,
    /// Explicit ones first, then declared data and outputs at their own paths.
    pub binds: Vec<ResolvedBind>,
    /// Absolute glob patterns on the host.
    pub outputs: Vec<String>,
    /// Absolute, as the program sees it.
    pub cwd: PathBuf,
    pub user: StageUser,
    pub resources: Resources,
}
