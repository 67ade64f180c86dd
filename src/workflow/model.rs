//! The checked workflow: what the rest of the program may rely on.

use std::fmt;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::units::{Bytes, Seconds};
use crate::oci::Digest;

/// A text with `${{ }}` in it, whose expressions are known to compile and to name things that exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Template(pub String);

/// `[A-Za-z][A-Za-z0-9_-]*`, at most 64 characters: safe as a file name, a job name and a shell word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StageName(pub String);

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checked workflow file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workflow {
    /// Absolute path of the file.
    pub file: PathBuf,
    /// Its folder, against which relative paths are resolved.
    pub dir: PathBuf,
    pub name: String,
    pub description: Option<String>,
    /// After `--set` and `--params`.
    pub params: IndexMap<String, Value>,
    pub images: IndexMap<String, Image>,
    pub data: IndexMap<String, DataSet>,
    /// In an order in which each stage stands after all that it needs.
    pub stages: IndexMap<StageName, Stage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// As written: `docker://…`, `oci:DIR[:TAG]`, …; relative paths already made absolute.
    pub source: String,
    /// `os/architecture[/variant]`; this host's where absent.
    pub platform: Option<String>,
    /// Apps declared in the file. A stage that names one is already resolved to its command and environment.
    #[serde(default)]
    pub apps: IndexMap<String, App>,
}

/// A program of an image by a name of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct App {
    pub help: Option<String>,
    /// At least one word; the caller's arguments are appended.
    pub run: Vec<Template>,
    pub env: IndexMap<String, Template>,
}

/// A data set: files to have, and where from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSet {
    pub source: DataSource,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// Files downloaded into one folder of the store. `${{ data.NAME }}` is the folder,
    /// `${{ data.NAME.file }}` a file in it.
    Files(Vec<DataFile>),
    /// One archive, downloaded and unpacked into a folder.
    Archive(DataFile),
    /// Already on this host; checked, never copied.
    Path(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// File name (no `/`) in the data set's folder.
    pub name: String,
    /// `https:`, `http:`, `file:` or `gs:`; whole.
    pub url: String,
    pub digest: Option<Digest>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub name: StageName,
    pub needs: Vec<Need>,
    /// Runs whatever became of what it needs.
    pub always: bool,
    /// A key of [`Workflow::images`]; `None` is `image: none`, the host itself.
    pub image: Option<String>,
    pub command: Command,
    pub env: IndexMap<String, Template>,
    pub binds: Vec<Bind>,
    pub array: Option<Array>,
    pub resources: Resources,
    /// Globs; relative ones against the workflow's folder.
    pub outputs: Vec<Template>,
    /// Working directory. Relative: a folder below the workflow's, created and writable. Absolute: a path in the
    /// container. `None`: the workflow's folder at its own path.
    pub workdir: Option<Template>,
    #[serde(default)]
    pub user: StageUser,
    pub retry: Retry,
    pub slurm: SlurmOptions,
}

impl Stage {
    /// The number of tasks: 1 without an array.
    pub fn tasks(&self) -> u32 {
        self.array.as_ref().map_or(1, |array| array.count)
    }
}

/// Who a stage's program is in its container. On the host it is always the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageUser {
    #[default]
    Caller,
    Root,
    /// Whom the image's configuration names.
    Image,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Need {
    pub stage: StageName,
    /// Wait only for the task with the same index (Slurm's `aftercorr`).
    pub same_shard: bool,
}

/// What a task runs. Before expansion the texts are templates, after it they are literal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A SCIF app that is in the image and not declared in the file, with arguments appended.
    App { name: String, args: Vec<Template> },
    /// An exact argument vector.
    Argv(Vec<Template>),
    /// A shell script, run as `sh -eu`.
    Script(Template),
    /// The image's own entry point with these arguments in place of its Cmd.
    Entrypoint { args: Vec<Template> },
}

/// `source:target[:ro|rw]`. Source: relative to the workflow's folder. Target: absolute, in the container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bind {
    pub source: Template,
    pub target: Template,
    pub mode: BindMode,
    /// A missing source leaves the bind out.
    pub optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BindMode {
    #[serde(rename = "ro")]
    ReadOnly,
    #[serde(rename = "rw")]
    ReadWrite,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Array {
    /// At least 1.
    pub count: u32,
    pub max_parallel: Option<u32>,
    /// `array.value` of each task (`values`, `file`, `matrix`), as many as `count`; empty for a plain count.
    pub values: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    pub cpus: u32,
    pub memory: Option<Bytes>,
    pub time: Option<Seconds>,
    pub gpus: u32,
    pub nodes: Option<u32>,
    pub tasks: Option<u32>,
    pub scratch: Option<Bytes>,
}

impl Default for Resources {
    fn default() -> Self {
        Resources {
            cpus: 1,
            memory: None,
            time: None,
            gpus: 0,
            nodes: None,
            tasks: None,
            scratch: None,
        }
    }
}

/// `retry: {max, when, scale}`; `max: 0` is none.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Retry {
    pub max: u32,
    /// Empty: after any failure.
    pub when: Vec<RetryCause>,
    pub scale: Scale,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryCause {
    Oom,
    Timeout,
    NodeFail,
    Preempted,
    Exit(i32),
}

/// Factors by which a retry's resources grow; 1.0 leaves them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    pub memory: f64,
    pub time: f64,
}

impl Default for Scale {
    fn default() -> Self {
        Scale { memory: 1.0, time: 1.0 }
    }
}

/// The way out for what has no name here.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct SlurmOptions {
    pub partition: Option<String>,
    /// Appended to `sbatch`'s options, one option each.
    pub args: Vec<String>,
}
