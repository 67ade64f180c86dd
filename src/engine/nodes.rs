//! The machines of a run, and what is free on each.

use std::sync::Arc;

use super::local::{Budget, LocalError};
use super::slurm::Step;
use super::task::retry_resources;
use crate::plan::{Plan, StagePlan};
use crate::workflow::units::Bytes;

/// A machine that tasks run on.
#[derive(Clone, Debug)]
pub struct Node {
    /// How a task gets there; `None`: it is this machine.
    pub step: Option<Arc<Step>>,
    pub budget: Budget,
}

/// All of them; at least one.
#[derive(Clone, Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    free: Vec<Budget>,
    /// The free GPUs of each, by number.
    gpus: Vec<Vec<u32>>,
}

impl From<Vec<Node>> for Nodes {
    fn from(nodes: Vec<Node>) -> Nodes {
        let free = nodes.iter().map(|node| node.budget).collect();
        let gpus = nodes.iter().map(|node| (0..node.budget.gpus).rev().collect()).collect();
        Nodes { nodes, free, gpus }
    }
}

impl From<Budget> for Nodes {
    /// This machine alone.
    fn from(budget: Budget) -> Nodes {
        Nodes::from(vec![Node { step: None, budget }])
    }
}

/// What a task asks for while it runs. There are few of these and many tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asked {
    cpus: u32,
    /// Bytes.
    memory: u64,
    gpus: u32,
}

impl Asked {
    /// What each task of `stage` asks for the `attempt`th time, from 0.
    pub fn by(stage: &StagePlan, attempt: u32) -> Asked {
        let resources = retry_resources(&stage.stage, attempt);
        Asked {
            cpus: resources.cpus.saturating_mul(resources.tasks.unwrap_or(1)),
            memory: resources.memory.map_or(0, |bytes| bytes.0),
            gpus: resources.gpus,
        }
    }

    fn fits(self, budget: Budget) -> bool {
        self.cpus <= budget.cpus && self.memory <= budget.memory && self.gpus <= budget.gpus
    }
}

/// What a task has taken, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    node: usize,
    what: Asked,
}

impl Taken {
    /// `None`: none was asked for.
    pub fn memory(self) -> Option<Bytes> {
        Some(Bytes(self.what.memory)).filter(|memory| memory.0 > 0)
    }
}

impl Nodes {
    /// Tasks at once, on all of them together.
    pub fn jobs(&self) -> u32 {
        self.nodes.iter().map(|node| node.budget.jobs).max().unwrap_or(0)
    }

    /// How a task gets to where it has its place.
    pub(super) fn step(&self, taken: Taken) -> Option<Arc<Step>> {
        self.nodes[taken.node].step.clone()
    }

    /// Where a task may start now, and what it takes there.
    ///
    /// A task is never asked to leave more than all of a machine: a workflow written for a cluster's nodes still runs on a
    /// laptop, one task at a time. GPUs are different: they are there or they are not.
    pub(super) fn place(&self, asked: Asked) -> Option<Taken> {
        let on = |node: usize| {
            let whole = self.nodes[node].budget;
            let what = Asked {
                cpus: asked.cpus.min(whole.cpus),
                memory: asked.memory.min(whole.memory),
                ..asked
            };
            Taken { node, what }
        };
        let somewhere = self.nodes.iter().any(|node| asked.fits(node.budget));
        let mut all = (0..self.nodes.len()).filter(|&node| !somewhere || asked.fits(self.nodes[node].budget));
        all.find_map(|node| Some(on(node)).filter(|taken| taken.what.fits(self.free[node])))
    }

    /// Gives the numbers of the GPUs that it takes.
    pub(super) fn take(&mut self, Taken { node, what }: Taken) -> Vec<u32> {
        let free = &mut self.free[node];
        free.cpus -= what.cpus;
        free.memory -= what.memory;
        free.gpus -= what.gpus;
        let all = &mut self.gpus[node];
        let mut own = all.split_off(all.len() - what.gpus as usize);
        own.sort_unstable();
        own
    }

    pub(super) fn give_back(&mut self, Taken { node, what }: Taken, gpus: Vec<u32>) {
        self.gpus[node].extend(gpus);
        let free = &mut self.free[node];
        free.cpus += what.cpus;
        free.memory += what.memory;
        free.gpus += what.gpus;
    }

    /// Whether each stage that is to run fits on some machine when nothing else runs.
    ///
    /// # Errors
    /// The first that never does.
    pub fn fits(&self, plan: &Plan) -> Result<(), LocalError> {
        let mut running = plan.stages.values().filter(|stage| !stage.todo.is_empty());
        running.try_for_each(|stage| self.fits_at_all(stage))
    }

    fn fits_at_all(&self, stage: &StagePlan) -> Result<(), LocalError> {
        let asked = &stage.stage.resources;
        let memory = asked.memory.map_or(0, |bytes| bytes.0);
        let with_gpus = || self.nodes.iter().map(|node| node.budget).filter(|budget| asked.gpus <= budget.gpus);
        if with_gpus().any(|budget| memory <= budget.memory) {
            return Ok(());
        }
        let (asked, available) = match with_gpus().map(|budget| budget.memory).max() {
            None => {
                let most = self.nodes.iter().map(|node| node.budget.gpus).max().unwrap_or(0);
                (format!("{} GPUs", asked.gpus), most.to_string())
            }
            Some(most) => (format!("{} of memory", Bytes(memory)), whole_mebibytes(most).to_string()),
        };
        Err(LocalError::TooLarge {
            stage: stage.stage.name.clone(),
            asked,
            available,
        })
    }
}

/// What is left of a machine's odd number of bytes says nothing to people.
fn whole_mebibytes(bytes: u64) -> Bytes {
    Bytes(bytes >> 20 << 20)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::engine::slurm::{Lifeline, Slurm};
    use crate::engine::testing::{plan, stage};

    fn node(name: &str, cpus: u32, memory: u64, gpus: u32) -> Node {
        let budget = Budget {
            cpus,
            memory,
            gpus,
            jobs: 9,
        };
        let step = Step {
            node: name.to_owned(),
            job: "7".to_owned(),
            slurm: Slurm::new([]),
            program: PathBuf::from("dvrun").into(),
            lifeline: Arc::new(Lifeline::new().unwrap()),
        };
        Node {
            step: Some(Arc::new(step)),
            budget,
        }
    }

    fn name(nodes: &Nodes, taken: Taken) -> String {
        nodes.step(taken).unwrap().node.clone()
    }

    fn asked(cpus: u32, memory: u64, gpus: u32) -> Asked {
        Asked::by(&stage_plan(cpus, memory, gpus), 0)
    }

    fn stage_plan(cpus: u32, memory: u64, gpus: u32) -> StagePlan {
        let mut stage = stage("a", 1, &[]);
        (stage.resources.cpus, stage.resources.gpus) = (cpus, gpus);
        stage.resources.memory = (memory > 0).then_some(Bytes(memory));
        plan([stage]).stages[0].clone()
    }

    #[test]
    fn each_machine_is_filled_and_given_back() {
        let mut nodes = Nodes::from(vec![node("c1", 2, 100, 0), node("c2", 4, 100, 1)]);
        let start = |nodes: &mut Nodes, asked: Asked| {
            let taken = nodes.place(asked)?;
            let gpus = nodes.take(taken);
            Some((name(nodes, taken), taken, gpus))
        };
        let small = asked(2, 60, 0);
        let (first, taken, none) = start(&mut nodes, small).unwrap();
        assert_eq!(first, "c1");
        assert_eq!(start(&mut nodes, small).unwrap().0, "c2");
        assert_eq!(start(&mut nodes, small), None, "no memory is left");
        let (node, _, gpus) = start(&mut nodes, asked(1, 10, 1)).unwrap();
        assert_eq!((node.as_str(), gpus), ("c2", vec![0]));
        assert_eq!(start(&mut nodes, asked(1, 0, 1)), None);
        nodes.give_back(taken, none);
        assert_eq!(start(&mut nodes, small).unwrap().0, "c1");
    }

    #[test]
    fn what_one_machine_holds_waits_for_it_and_what_none_holds_takes_a_whole_one() {
        let nodes = Nodes::from(vec![node("c1", 2, 100, 0), node("c2", 4, 100, 0)]);
        assert_eq!(name(&nodes, nodes.place(asked(3, 0, 0)).unwrap()), "c2");
        assert_eq!(nodes.place(asked(16, 0, 0)).unwrap().what.cpus, 2);
        let fits = |asked: StagePlan| {
            let mut all = plan([stage("a", 1, &[])]);
            all.stages[0] = asked;
            nodes.fits(&all).map_err(|error| error.to_string())
        };
        assert_eq!(fits(stage_plan(16, 100, 0)), Ok(()));
        assert!(fits(stage_plan(1, 2 << 30, 0)).unwrap_err().contains("2G of memory"));
        assert!(fits(stage_plan(1, 0, 1)).unwrap_err().contains("1 GPUs"));
    }
}
