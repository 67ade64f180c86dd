//! The partition that a stage goes to, where a profile names several.

use std::ffi::OsStr;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::call::{CallError, Slurm, call};
use super::profile::SlurmProfile;
use crate::engine::task::retry_resources;
use crate::workflow::units::{Bytes, Seconds, as_written};
use crate::workflow::{Resources, Stage};

/// What a partition takes. A limit that is not given is read from the cluster; what that does not limit is not limited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Partition {
    pub name: String,
    #[serde(deserialize_with = "as_written")]
    pub time: Option<Seconds>,
    /// Of a node.
    #[serde(deserialize_with = "as_written")]
    pub memory: Option<Bytes>,
    /// Of a node.
    pub cpus: Option<u32>,
    /// `0`: stages without GPUs alone.
    pub gpus: Option<u32>,
    pub nodes: Option<u32>,
}

/// Why a partition is not for a stage: `time: 2-00:00:00 of 12:00:00`.
#[derive(Debug, PartialEq, Eq)]
pub struct TooSmall(String);

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Partition {
    /// Whether a task that asks for `asked` may run here.
    fn takes(&self, asked: &Resources) -> Result<(), TooSmall> {
        fn within<T: PartialOrd + fmt::Display>(what: &str, asked: Option<T>, most: Option<T>) -> Result<(), TooSmall> {
            match (asked, most) {
                (Some(asked), Some(most)) if asked > most => Err(TooSmall(format!("{what}: {asked} of {most}"))),
                _ => Ok(()),
            }
        }
        let nodes = asked.nodes.unwrap_or(1).max(1);
        let tasks = asked.tasks.unwrap_or(1).div_ceil(nodes).max(1);
        within("time", asked.time, self.time)?;
        within("memory", asked.memory, self.memory)?;
        within("cpus", Some(asked.cpus.saturating_mul(tasks)), self.cpus)?;
        within("gpus", Some(asked.gpus), self.gpus)?;
        within("nodes", Some(nodes), self.nodes)
    }
}

/// The first of `partitions` that takes `stage`: with all that its retries may grow to, or else as it begins.
///
/// # Errors
/// Each partition with what it is too small for.
pub fn choose<'a>(stage: &Stage, partitions: &'a [Partition]) -> Result<&'a str, Vec<(&'a str, TooSmall)>> {
    let grown = retry_resources(stage, stage.retry.max);
    let mut small = Vec::new();
    for asked in [&grown, &stage.resources] {
        small.clear();
        for partition in partitions {
            match partition.takes(asked) {
                Ok(()) => return Ok(&partition.name),
                Err(why) => small.push((partition.name.as_str(), why)),
            }
        }
    }
    Err(small)
}

/// `profile` with the limits of its partitions that it leaves to the cluster, as `scontrol show partition` tells them.
///
/// # Errors
/// [`CallError`] when the controller does not answer.
pub fn with_limits(profile: &SlurmProfile, slurm: &Slurm) -> Result<SlurmProfile, CallError> {
    let mut profile = profile.clone();
    if profile.partitions.is_empty() {
        return Ok(profile);
    }
    let text = call(slurm, &slurm.scontrol, &["show", "partition", "--oneliner"].map(OsStr::new))?;
    for partition in &mut profile.partitions {
        if let Some(told) = text.lines().map(parse).find(|told| told.name == partition.name) {
            *partition = Partition {
                name: told.name,
                time: partition.time.or(told.time),
                memory: partition.memory.or(told.memory),
                cpus: partition.cpus.or(told.cpus),
                gpus: partition.gpus.or(told.gpus),
                nodes: partition.nodes.or(told.nodes),
            };
        }
    }
    Ok(profile)
}

/// One line of `scontrol show partition --oneliner`. `UNLIMITED` is no number.
fn parse(line: &str) -> Partition {
    let value = |key: &str| {
        let words = line.split_whitespace().filter_map(|word| word.split_once('='));
        words.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    let number = |key: &str| value(key).and_then(|text| text.parse().ok());
    let mebibytes = value("MaxMemPerNode").and_then(|text| text.parse::<u64>().ok());
    let gpus = value("TRES").map(|tres| {
        let all = tres.split(',').filter_map(|word| word.strip_prefix("gres/gpu="));
        all.filter_map(|count| count.parse().ok()).next().unwrap_or(0)
    });
    Partition {
        name: value("PartitionName").unwrap_or_default().to_owned(),
        time: value("MaxTime").and_then(|text| text.parse().ok()),
        memory: mebibytes.filter(|&mebibytes| mebibytes > 0).map(|mebibytes| Bytes(mebibytes << 20)),
        cpus: number("MaxCPUsPerNode"),
        gpus,
        nodes: number("MaxNodes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::stage;
    use crate::workflow::Retry;

    const SHOWN: &str = "PartitionName=gpu AllowGroups=ALL Default=NO MaxNodes=4 MaxTime=1-00:00:00 MinNodes=0 LLN=NO \
        MaxCPUsPerNode=UNLIMITED State=UP TotalCPUs=64 DefMemPerNode=UNLIMITED MaxMemPerNode=64000 \
        TRES=cpu=64,mem=256000M,node=4,billing=64,gres/gpu=8,gres/gpu:a100=8";

    #[test]
    fn what_scontrol_shows_is_read() {
        let gpu = parse(SHOWN);
        assert_eq!(
            (gpu.name.as_str(), gpu.time, gpu.nodes, gpu.cpus),
            ("gpu", Some(Seconds(86_400)), Some(4), None)
        );
        assert_eq!((gpu.memory, gpu.gpus), (Some(Bytes(64_000 << 20)), Some(8)));
        let bare = parse("PartitionName=x MaxTime=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=8,node=4");
        assert_eq!((bare.time, bare.memory, bare.gpus), (None, None, Some(0)));
        assert_eq!(parse("noise").name, "");
    }

    #[test]
    fn the_first_that_has_room_is_chosen_with_room_for_retries_where_there_is_any() {
        let partitions: Vec<Partition> = serde_yaml::from_str(
            "[{name: short, time: 4h, gpus: 0}, {name: long, time: 7d, memory: 64G, cpus: 16, gpus: 0}, {name: gpu, gpus: 4}]",
        )
        .unwrap();
        let mut stage = stage("a", 1, &[]);
        let chosen = |stage: &Stage| choose(stage, &partitions).map(str::to_owned);
        assert_eq!(chosen(&stage), Ok("short".to_owned()));
        stage.resources.time = Some(Seconds(3 * 3600));
        stage.retry = Retry {
            max: 2,
            ..Retry::default()
        };
        stage.retry.scale.time = 2.0;
        assert_eq!(chosen(&stage), Ok("long".to_owned()));
        stage.resources.gpus = 1;
        assert_eq!(chosen(&stage), Ok("gpu".to_owned()));
        stage.resources.gpus = 0;
        stage.resources.memory = Some(Bytes(100 << 30));
        stage.resources.time = Some(Seconds(5 * 24 * 3600));
        assert_eq!(chosen(&stage), Ok("gpu".to_owned()));
        let small = choose(&stage, &partitions[..2]).unwrap_err();
        let words: Vec<String> = small.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        assert_eq!(words, ["short (time: 5-00:00:00 of 04:00:00)", "long (memory: 100G of 64G)"]);
    }
}
