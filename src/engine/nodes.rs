//! The machines of a run, and what is free on each.

use super::local::{Budget, LocalError};
use super::task::retry_resources;
use crate::plan::{Plan, StagePlan};
use crate::workflow::units::Bytes;

/// A machine that tasks run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// As Slurm calls a node of the allocation; `None`: this machine.
    pub name: Option<String>,
    pub budget: Budget,
}

/// All of them; at least one.
#[derive(Clone, Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    free: Vec<Budget>,
}

impl From<Vec<Node>> for Nodes {
    fn from(nodes: Vec<Node>) -> Nodes {
        let free = nodes.iter().map(|node| node.budget).collect();
        Nodes { nodes, free }
    }
}

impl From<Budget> for Nodes {
    /// This machine alone.
    fn from(budget: Budget) -> Nodes {
        Nodes::from(vec![Node { name: None, budget }])
    }
}

/// What a task has taken, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    node: usize,
    cpus: u32,
    memory: u64,
    gpus: u32,
}

impl Nodes {
    /// Tasks at once, on all of them together.
    pub fn jobs(&self) -> u32 {
        self.nodes.iter().map(|node| node.budget.jobs).max().unwrap_or(0)
    }

    /// What a task is to be started on.
    pub(super) fn name(&self, taken: Taken) -> Option<&str> {
        self.nodes[taken.node].name.as_deref()
    }

    /// Where a task of `stage` may start now, and what it takes there.
    ///
    /// A task is never asked to leave more than all of a machine: a workflow written for a cluster's nodes still runs on a
    /// laptop, one task at a time. GPUs are different: they are there or they are not.
    pub(super) fn place(&self, stage: &StagePlan, attempt: u32) -> Option<Taken> {
        let asked = retry_resources(&stage.stage, attempt);
        let memory = asked.memory.map_or(0, |bytes| bytes.0);
        let on = |node: usize| {
            let whole = self.nodes[node].budget;
            Taken {
                node,
                cpus: asked.cpus.min(whole.cpus),
                memory: memory.min(whole.memory),
                gpus: asked.gpus,
            }
        };
        let holds = |budget: &Budget| asked.cpus <= budget.cpus && memory <= budget.memory && asked.gpus <= budget.gpus;
        let somewhere = self.nodes.iter().any(|node| holds(&node.budget));
        let mut all = (0..self.nodes.len()).filter(|&node| !somewhere || holds(&self.nodes[node].budget));
        all.find_map(|node| Some(on(node)).filter(|taken| taken.fits(self.free[node])))
    }

    pub(super) fn take(&mut self, taken: Taken) {
        let free = &mut self.free[taken.node];
        free.cpus -= taken.cpus;
        free.memory -= taken.memory;
        free.gpus -= taken.gpus;
    }

    pub(super) fn give_back(&mut self, taken: Taken) {
        let free = &mut self.free[taken.node];
        free.cpus += taken.cpus;
        free.memory += taken.memory;
        free.gpus += taken.gpus;
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

impl Taken {
    fn fits(self, free: Budget) -> bool {
        self.cpus <= free.cpus && self.memory <= free.memory && self.gpus <= free.gpus
    }
}

/// What is left of a machine's odd number of bytes says nothing to people.
fn whole_mebibytes(bytes: u64) -> Bytes {
    Bytes(bytes >> 20 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::{plan, stage};

    fn node(name: &str, cpus: u32, memory: u64, gpus: u32) -> Node {
        let budget = Budget {
            cpus,
            memory,
            gpus,
            jobs: 9,
        };
        Node {
            name: Some(name.to_owned()),
            budget,
        }
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
        let start = |nodes: &mut Nodes, stage: &StagePlan| {
            let taken = nodes.place(stage, 0)?;
            nodes.take(taken);
            Some((nodes.name(taken).unwrap().to_owned(), taken))
        };
        let small = stage_plan(2, 60, 0);
        let (first, taken) = start(&mut nodes, &small).unwrap();
        assert_eq!(first, "c1");
        assert_eq!(start(&mut nodes, &small).unwrap().0, "c2");
        assert_eq!(start(&mut nodes, &small), None, "no memory is left");
        assert_eq!(start(&mut nodes, &stage_plan(1, 10, 1)).unwrap().0, "c2");
        assert_eq!(start(&mut nodes, &stage_plan(1, 0, 1)), None);
        nodes.give_back(taken);
        assert_eq!(start(&mut nodes, &small).unwrap().0, "c1");
    }

    #[test]
    fn what_one_machine_holds_waits_for_it_and_what_none_holds_takes_a_whole_one() {
        let nodes = Nodes::from(vec![node("c1", 2, 100, 0), node("c2", 4, 100, 0)]);
        assert_eq!(nodes.name(nodes.place(&stage_plan(3, 0, 0), 0).unwrap()), Some("c2"));
        assert_eq!(nodes.place(&stage_plan(16, 0, 0), 0).unwrap().cpus, 2);
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
