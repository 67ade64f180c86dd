//! What one cluster wants.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::partition::Partition;

/// `profiles.NAME.slurm` of the configuration file. Everything may be left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlurmProfile {
    pub account: Option<String>,
    /// A stage's own partition goes before this one.
    pub partition: Option<String>,
    /// A stage that names no partition gets the first of these that has room for it; `partition` where none has.
    pub partitions: Vec<Partition>,
    pub qos: Option<String>,
    pub constraint: Option<String>,
    /// How this site wants memory to be asked for.
    pub memory: MemoryFlag,
    /// How this site wants GPUs to be asked for.
    pub gpus: GpuFlag,
    /// Slurm itself cancels jobs whose dependency cannot be met any more. `None`: as the site has it.
    pub kill_invalid_depend: Option<bool>,
    pub export: Export,
    /// Loaded before a job's task begins; what they set is seen by stages without a container.
    pub modules: Vec<String>,
    /// Set in each job, for stages without a container.
    pub env: IndexMap<String, String>,
    /// More options of `sbatch`, one each, before a stage's own.
    pub args: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryFlag {
    /// `--mem`: of the node.
    #[default]
    Mem,
    /// `--mem-per-cpu`: a stage's memory divided by its cpus.
    MemPerCpu,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuFlag {
    /// `--gres=gpu:N`
    #[default]
    Gres,
    /// `--gpus=N`
    Gpus,
    /// `--gpus-per-node=N`
    GpusPerNode,
}

/// What a job sees of the environment that it was submitted from: nothing, in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Export {
    /// `--export=NONE`: the user's login environment is made on the node.
    #[default]
    None,
    /// `--export=NIL`: only Slurm's own variables; not known to old versions of Slurm.
    Nil,
}
