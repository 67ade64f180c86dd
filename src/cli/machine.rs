//! What this machine has to give, and the other nodes of an allocation.

use std::ffi::OsStr;
use std::fs;
use std::sync::Arc;

use super::failure::{Failure, exit};
use super::settings::Settings;
use crate::engine::local::Budget;
use crate::engine::slurm::{Lifeline, Step};
use crate::engine::{Node, Nodes, slurm};

/// This machine; inside an allocation of Slurm's, all its nodes, each with what the allocation gives of it.
///
/// # Errors
/// An allocation whose nodes Slurm does not name.
pub fn nodes(jobs: Option<u32>, settings: &Settings) -> Result<Nodes, Failure> {
    let here = budget(jobs);
    let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(job), Some(list)) = (text("SLURM_JOB_ID"), text("SLURM_JOB_NODELIST")) else {
        return Ok(here.into());
    };
    let this = text("SLURMD_NODENAME");
    if this.as_deref() == Some(&list) {
        return Ok(here.into());
    }
    let slurm = settings.slurm();
    let names = slurm::hostnames(&slurm, OsStr::new(&list)).map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, error.hint()))?;
    let lifeline = Lifeline::new().map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    let lifeline = Arc::new(lifeline);
    let cpus = each(&text("SLURM_JOB_CPUS_PER_NODE").unwrap_or_default());
    let nodes: Vec<Node> = (names.into_iter().enumerate())
        .map(|(at, name)| {
            if this.as_deref() == Some(&name) {
                return Node { step: None, budget: here };
            }
            let cpus = cpus.get(at).copied().unwrap_or(1);
            let memory = number("SLURM_MEM_PER_NODE").or_else(|| Some(number("SLURM_MEM_PER_CPU")? * u64::from(cpus)));
            let budget = Budget {
                cpus,
                // Where Slurm limits no memory, the nodes are taken to be alike.
                memory: memory.map_or(here.memory, |mebibytes| mebibytes << 20),
                gpus: number("SLURM_GPUS_ON_NODE").or_else(|| number("SLURM_GPUS_PER_NODE")).unwrap_or(0) as u32,
                jobs: here.jobs,
            };
            let step = Step {
                node: name,
                job: job.clone(),
                slurm: slurm.clone(),
                program: settings.program.clone(),
                scratch: settings.scratch.clone(),
                lifeline: Arc::clone(&lifeline),
            };
            Node {
                step: Some(Arc::new(step)),
                budget,
            }
        })
        .collect();
    match nodes.is_empty() {
        true => Ok(here.into()),
        false => Ok(nodes.into()),
    }
}

/// `2(x3),4` is two cpus on each of three nodes, and four on the next.
fn each(text: &str) -> Vec<u32> {
    const MOST: usize = 100_000;
    let mut all = Vec::new();
    for word in text.split(',') {
        let (count, times) = match word.split_once("(x") {
            Some((count, times)) => (count, times.trim_end_matches(')')),
            None => (word, "1"),
        };
        if let (Ok(count), Ok(times)) = (count.parse::<u32>(), times.parse::<usize>()) {
            all.extend(std::iter::repeat_n(count, times.min(MOST)));
        }
    }
    all
}

/// The cpus that this process may use, the machine's memory, its GPUs; of these what a Slurm allocation gives, in one.
fn budget(jobs: Option<u32>) -> Budget {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let allocated = number("SLURM_CPUS_ON_NODE").map(|cpus| cpus as u32);
    // Not all clusters bind jobs to their cpus and memory: what is allocated holds all the same.
    let memory_allocated = number("SLURM_MEM_PER_NODE")
        .or_else(|| Some(number("SLURM_MEM_PER_CPU")? * number("SLURM_CPUS_ON_NODE")?))
        .map(|mebibytes| mebibytes << 20);
    Budget {
        cpus: allocated.map_or(cpus, |allocated| allocated.clamp(1, cpus)),
        memory: memory().min(memory_allocated.unwrap_or(u64::MAX)),
        gpus: gpus(),
        jobs: jobs.unwrap_or(u32::MAX),
    }
}

/// A number in the environment; zero is none, as Slurm says `all` by it.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()?
        .parse()
        .ok()
        .filter(|&number| number > 0 && number < 1 << 40)
}

/// Bytes; of the machine, or of this process's cgroup where that is less.
fn memory() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let machine = total.map_or(u64::MAX, |kibibytes| kibibytes * 1024);
    cgroup_limit().map_or(machine, |limit| machine.min(limit))
}

/// The smallest limit on the way from this process's cgroup to the root: version 2, then version 1.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        for group in std::path::Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = fs::read_to_string(std::path::Path::new(root).join(group).join(file));
            if let Some(limit) = limit.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
                least = Some(least.map_or(limit, |least: u64| least.min(limit)));
            }
        }
    }
    least
}

/// `CUDA_VISIBLE_DEVICES` where it is set, else the NVIDIA devices that there are.
fn gpus() -> u32 {
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        return visible.split(',').filter(|device| !device.is_empty() && *device != "-1").count() as u32;
    }
    let Ok(entries) = fs::read_dir("/dev") else { return 0 };
    let is_gpu = |name: &str| {
        name.strip_prefix("nvidia")
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_gpu))
        .count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_of_each_node() {
        assert_eq!(each("2(x3),4"), [2, 2, 2, 4]);
        assert_eq!(each("8"), [8]);
        assert!(each("").is_empty() && each("x(x2),(x),3(x").is_empty());
    }
}
