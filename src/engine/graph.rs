//! Which tasks may start, as others end. Pure.

use std::collections::{BTreeSet, VecDeque};

use crate::plan::{Plan, StagePlan};
use crate::workflow::StageName;

/// A task that may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// Place of the stage in the plan.
    pub stage: usize,
    pub index: u32,
    /// From 0.
    pub attempt: u32,
}

/// A task that will not start in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Skipped<'a> {
    pub stage: &'a StageName,
    pub index: u32,
    /// The needed stage that did not end well.
    pub by: &'a StageName,
}

/// The state of a run's graph. A task is pending, then ready, then running, then ended; or skipped from pending.
pub(super) struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    ready: VecDeque<Ready>,
}

struct Node<'a> {
    plan: &'a StagePlan,
    /// Needed stages that have not ended; tasks start when none is left.
    waits: Vec<usize>,
    /// Needed stages of which each task waits for its own index only.
    shard_waits: Vec<usize>,
    /// Stages that wait for this one, in whole or by shard.
    dependents: Vec<usize>,
    pending: BTreeSet<u32>,
    /// Ready or running.
    started: u32,
    /// Tasks that have neither ended nor been skipped.
    left: u32,
    failed: bool,
    shards: Vec<Shard>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shard {
    Open,
    Ok,
    Failed,
}

impl<'a> Graph<'a> {
    /// Tasks outside `todo` count as ended well.
    pub fn new(plan: &'a Plan) -> Graph<'a> {
        let mut nodes: Vec<Node> = Vec::with_capacity(plan.stages.len());
        for (place, stage) in plan.stages.values().enumerate() {
            let (mut waits, mut shard_waits) = (Vec::new(), Vec::new());
            for need in &stage.stage.needs {
                let needed = plan
                    .stages
                    .get_index_of(&need.stage)
                    .expect("a checked plan names only its own stages");
                if nodes[needed].left == 0 {
                    continue;
                }
                nodes[needed].dependents.push(place);
                if need.same_shard && !stage.stage.always {
                    &mut shard_waits
                } else {
                    &mut waits
                }
                .push(needed);
            }
            let shard = |index| if stage.todo.contains(index) { Shard::Open } else { Shard::Ok };
            nodes.push(Node {
                plan: stage,
                waits,
                shard_waits,
                dependents: Vec::new(),
                pending: stage.todo.iter().collect(),
                started: 0,
                left: stage.todo.len(),
                failed: false,
                shards: (0..stage.stage.tasks()).map(shard).collect(),
            });
        }
        let mut graph = Graph {
            nodes,
            ready: VecDeque::new(),
        };
        for place in 0..graph.nodes.len() {
            graph.offer(place);
        }
        graph
    }

    pub fn stage(&self, task: Ready) -> &'a StagePlan {
        self.nodes[task.stage].plan
    }

    /// The first ready task that fits.
    pub fn take(&mut self, mut fits: impl FnMut(&StagePlan, u32) -> bool) -> Option<Ready> {
        let place = self
            .ready
            .iter()
            .position(|ready| fits(self.nodes[ready.stage].plan, ready.attempt))?;
        self.ready.remove(place)
    }

    /// A running task is to run again.
    pub fn put_back(&mut self, task: Ready) {
        self.ready.push_front(task);
    }

    /// A running task ended. Gives back what can no longer start because of that.
    pub fn ended(&mut self, task: Ready, ok: bool) -> Vec<Skipped<'a>> {
        let node = &mut self.nodes[task.stage];
        node.started -= 1;
        let mut skipped = Vec::new();
        self.settle(task.stage, task.index, ok, &mut skipped);
        self.offer(task.stage);
        skipped
    }

    /// Tasks neither ended nor skipped.
    pub fn never_started(&self) -> u32 {
        self.nodes.iter().map(|node| node.left).sum()
    }

    /// Notes how a task ended and hands that on to what waits for it.
    fn settle(&mut self, place: usize, index: u32, ok: bool, skipped: &mut Vec<Skipped<'a>>) {
        let node = &mut self.nodes[place];
        node.left -= 1;
        node.failed |= !ok;
        node.shards[index as usize] = if ok { Shard::Ok } else { Shard::Failed };
        let (over, failed) = (node.left == 0, node.failed);
        for dependent in node.dependents.clone() {
            let waiting = &mut self.nodes[dependent];
            if waiting.shard_waits.contains(&place) {
                if ok {
                    self.offer_shard(dependent, index);
                } else {
                    self.skip(dependent, index, place, skipped);
                }
            } else if failed && !waiting.plan.stage.always {
                for index in waiting.pending.clone() {
                    self.skip(dependent, index, place, skipped);
                }
            } else if over {
                waiting.waits.retain(|&need| need != place);
                self.offer(dependent);
            }
        }
    }

    fn skip(&mut self, place: usize, index: u32, by: usize, skipped: &mut Vec<Skipped<'a>>) {
        if self.nodes[place].pending.remove(&index) {
            skipped.push(Skipped {
                stage: &self.nodes[place].plan.stage.name,
                index,
                by: &self.nodes[by].plan.stage.name,
            });
            self.settle(place, index, false, skipped);
        }
    }

    /// Makes ready what may start of a stage, never more at once than its `max_parallel`.
    fn offer(&mut self, place: usize) {
        let node = &self.nodes[place];
        if !node.waits.is_empty() {
            return;
        }
        let room = node.room() as usize;
        let may: Vec<u32> = node
            .pending
            .iter()
            .copied()
            .filter(|&index| self.shard_may_start(place, index))
            .take(room)
            .collect();
        for index in may {
            self.make_ready(place, index);
        }
    }

    fn offer_shard(&mut self, place: usize, index: u32) {
        let node = &self.nodes[place];
        if node.waits.is_empty() && node.room() > 0 && node.pending.contains(&index) && self.shard_may_start(place, index) {
            self.make_ready(place, index);
        }
    }

    fn shard_may_start(&self, place: usize, index: u32) -> bool {
        self.nodes[place]
            .shard_waits
            .iter()
            .all(|&need| self.nodes[need].shards[index as usize] == Shard::Ok)
    }

    fn make_ready(&mut self, place: usize, index: u32) {
        let node = &mut self.nodes[place];
        node.pending.remove(&index);
        node.started += 1;
        self.ready.push_back(Ready {
            stage: place,
            index,
            attempt: 0,
        });
    }
}

impl Node<'_> {
    fn room(&self) -> u32 {
        let most = self
            .plan
            .stage
            .array
            .as_ref()
            .and_then(|array| array.max_parallel)
            .unwrap_or(u32::MAX);
        most.saturating_sub(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::{plan, stage};

    /// Runs all that may run, failing the tasks named; gives the order in which they started and the skipped ones.
    fn play(plan: &Plan, failing: &[(&str, u32)]) -> (Vec<String>, Vec<String>) {
        let mut graph = Graph::new(plan);
        let (mut order, mut skipped) = (Vec::new(), Vec::new());
        while let Some(task) = graph.take(|_, _| true) {
            let name = &graph.stage(task).stage.name;
            order.push(format!("{name}/{}", task.index));
            let ok = !failing.contains(&(name.0.as_str(), task.index));
            skipped.extend(
                graph
                    .ended(task, ok)
                    .iter()
                    .map(|skip| format!("{}/{} by {}", skip.stage, skip.index, skip.by)),
            );
        }
        assert_eq!(graph.never_started(), 0);
        (order, skipped)
    }

    #[test]
    fn a_stage_starts_when_all_that_it_needs_ended() {
        let plan = plan([
            stage("a", 1, &[]),
            stage("b", 2, &["a"]),
            stage("c", 1, &["a"]),
            stage("d", 1, &["b", "c"]),
        ]);
        assert_eq!(play(&plan, &[]).0, ["a/0", "b/0", "b/1", "c/0", "d/0"]);
    }

    #[test]
    fn a_failure_stops_what_needs_it_and_nothing_else() {
        let mut report = stage("report", 1, &["c"]);
        report.always = true;
        let plan = plan([
            stage("a", 3, &[]),
            stage("b", 1, &["a"]),
            stage("c", 1, &["b"]),
            stage("other", 1, &[]),
            report,
        ]);
        let (order, skipped) = play(&plan, &[("a", 1)]);
        assert_eq!(order, ["a/0", "a/1", "a/2", "other/0", "report/0"]);
        assert_eq!(skipped, ["b/0 by a", "c/0 by b"]);
    }

    #[test]
    fn shards_follow_shards() {
        let mut b = stage("b", 3, &["a"]);
        b.needs[0].same_shard = true;
        let plan = plan([stage("a", 3, &[]), b, stage("c", 1, &["b"])]);
        assert_eq!(play(&plan, &[]).0, ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2", "c/0"]);
        let (order, skipped) = play(&plan, &[("a", 1)]);
        assert_eq!(order, ["a/0", "a/1", "a/2", "b/0", "b/2"]);
        assert_eq!(skipped, ["b/1 by a", "c/0 by b"]);
    }

    #[test]
    fn max_parallel_bounds_what_is_ready_at_once() {
        let mut a = stage("a", 5, &[]);
        a.array.as_mut().unwrap().max_parallel = Some(2);
        let plan = plan([a]);
        let mut graph = Graph::new(&plan);
        let first = graph.take(|_, _| true).unwrap();
        graph.take(|_, _| true).unwrap();
        assert_eq!(graph.take(|_, _| true), None);
        graph.ended(first, true);
        assert_eq!(graph.take(|_, _| true).map(|task| task.index), Some(2));
    }

    #[test]
    fn only_what_is_to_do_runs() {
        let mut plan = plan([stage("a", 3, &[]), stage("b", 1, &["a"])]);
        plan.stages[0].todo = [1].into_iter().collect();
        assert_eq!(play(&plan, &[]).0, ["a/1", "b/0"]);
    }
}
