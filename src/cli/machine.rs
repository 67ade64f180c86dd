//! What this machine has to give, and the other nodes of an allocation.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::failure::{Failure, exit};
use super::settings::Settings;
use crate::engine::local::Budget;
use crate::engine::slurm::{Lifeline, Step};
use crate::engine::{Node, Nodes, slurm};
use crate::runtime::{self, Gpus};

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
        gpus: gpus().len() as u32,
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
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = fs::read_to_string(Path::new(root).join(group).join(file));
            if let Some(limit) = limit.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
                least = Some(least.map_or(limit, |least: u64| least.min(limit)));
            }
        }
    }
    least
}

/// The GPUs that this process may use, by the names that programs are told: those of `CUDA_VISIBLE_DEVICES` or
/// `ROCR_VISIBLE_DEVICES` where one is set, else a number for each device.
pub fn gpus() -> Vec<String> {
    let chosen = runtime::chosen_gpus(variable);
    let list = ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"]
        .iter()
        .find_map(|name| chosen.iter().find(|(other, _)| other == name));
    if let Some((_, list)) = list {
        let names = list.split(',').map(str::trim);
        return names.filter(|name| !name.is_empty() && *name != "-1").map(str::to_owned).collect();
    }
    (0..runtime::count_gpus(Path::new("/"))).map(|number| number.to_string()).collect()
}

/// What a container needs to use the GPUs `list`, or where that is empty, those that the environment chooses.
pub fn gpus_for(list: &str) -> Result<Gpus, Failure> {
    let chosen = match list {
        "" => runtime::chosen_gpus(variable),
        list => runtime::chosen_gpus(|name| {
            let asked = runtime::visible_gpus(list).into_iter().find(|(other, _)| other == name);
            asked.map(|(_, value)| value)
        }),
    };
    Ok(runtime::find_gpus(Path::new("/"), chosen)?)
}

/// A variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
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
