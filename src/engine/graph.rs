//! Which tasks may start, as others end. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
///
/// `C` is what a task costs while it runs: there are few costs and many tasks, so that what fits is asked once for each cost.
pub(super) struct Graph<'a, C> {
    nodes: Vec<Node<'a, C>>,
    /// By cost, those that became ready first in front, with their place in the order of all.
    ready: BTreeMap<C, VecDeque<(i64, Ready)>>,
    /// The next place at the end, and at the beginning.
    last: i64,
    first: i64,
}

struct Node<'a, C> {
    plan: &'a StagePlan,
    /// Of a first attempt.
    cost: C,
    /// Needed stages that have not ended; tasks start when none is left.
    waits: Vec<usize>,
    /// Needed stages of which each task waits for its own index only.
    shard_waits: Vec<usize>,
    /// Stages that wait for this one, in whole or by shard.
    dependents: Vec<usize>,
    pending: BTreeSet<u32>,
    /// Those of `pending` whose shards have ended well.
    open: BTreeSet<u32>,
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

impl<'a, C: Copy + Ord> Graph<'a, C> {
    /// Tasks outside `todo` count as ended well. `cost` is that of each task of a stage, the first time.
    pub fn new(plan: &'a Plan, cost: impl Fn(&StagePlan) -> C) -> Graph<'a, C> {
        let mut nodes: Vec<Node<C>> = Vec::with_capacity(plan.stages.len());
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
            let mut shards = vec![Shard::Ok; stage.stage.tasks() as usize];
            stage.todo.iter().for_each(|index| shards[index as usize] = Shard::Open);
            let open = |index: &u32| shard_waits.iter().all(|&need| nodes[need].shards[*index as usize] == Shard::Ok);
            nodes.push(Node {
                plan: stage,
                cost: cost(stage),
                pending: stage.todo.iter().collect(),
                open: stage.todo.iter().filter(open).collect(),
                waits,
                shard_waits,
                dependents: Vec::new(),
                started: 0,
                left: stage.todo.len(),
                failed: false,
                shards,
            });
        }
        let mut graph = Graph {
            nodes,
            ready: BTreeMap::new(),
            last: 0,
            first: -1,
        };
        for place in 0..graph.nodes.len() {
            graph.offer(place);
        }
        graph
    }

    pub fn stage(&self, task: Ready) -> &'a StagePlan {
        self.nodes[task.stage].plan
    }

    /// The first ready task whose cost fits.
    pub fn take(&mut self, fits: impl Fn(C) -> bool) -> Option<(Ready, C)> {
        let fitting = self.ready.iter().filter(|(cost, _)| fits(**cost));
        let (&cost, _) = fitting.min_by_key(|(_, queue)| queue.front().map(|(place, _)| *place))?;
        let queue = self.ready.get_mut(&cost)?;
        let (_, task) = queue.pop_front()?;
        if queue.is_empty() {
            self.ready.remove(&cost);
        }
        Some((task, cost))
    }

    /// A running task is to run again, before all others.
    pub fn put_back(&mut self, task: Ready, cost: C) {
        self.ready.entry(cost).or_default().push_front((self.first, task));
        self.first -= 1;
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
        let node = &mut self.nodes[place];
        if node.pending.remove(&index) {
            node.open.remove(&index);
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
        let node = &mut self.nodes[place];
        if !node.waits.is_empty() {
            return;
        }
        while node.room() > 0
            && let Some(index) = node.open.pop_first()
        {
            node.pending.remove(&index);
            node.started += 1;
            let task = Ready {
                stage: place,
                index,
                attempt: 0,
            };
            self.ready.entry(node.cost).or_default().push_back((self.last, task));
            self.last += 1;
        }
    }

    /// A shard that this one waited for ended well.
    fn offer_shard(&mut self, place: usize, index: u32) {
        let node = &self.nodes[place];
        let met = |&need: &usize| self.nodes[need].shards[index as usize] == Shard::Ok;
        if node.pending.contains(&index) && node.shard_waits.iter().all(met) {
            self.nodes[place].open.insert(index);
            self.offer(place);
        }
    }
}

impl<C> Node<'_, C> {
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
        let mut graph = Graph::new(plan, |_| ());
        let (mut order, mut skipped) = (Vec::new(), Vec::new());
        while let Some((task, ())) = graph.take(|()| true) {
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
        let mut graph = Graph::new(&plan, |_| ());
        let (first, ()) = graph.take(|()| true).unwrap();
        graph.take(|()| true).unwrap();
        assert_eq!(graph.take(|()| true), None);
        graph.ended(first, true);
        assert_eq!(graph.take(|()| true).map(|(task, ())| task.index), Some(2));
    }

    #[test]
    fn max_parallel_bounds_shards_that_follow_shards() {
        let mut b = stage("b", 4, &["a"]);
        b.needs[0].same_shard = true;
        b.array.as_mut().unwrap().max_parallel = Some(1);
        let plan = plan([stage("a", 4, &[]), b]);
        let mut graph = Graph::new(&plan, |_| ());
        let mut next = || graph.take(|()| true).map(|(task, ())| task);
        let a: Vec<Ready> = (0..4).map(|_| next().unwrap()).collect();
        for task in a.into_iter().rev() {
            graph.ended(task, true);
        }
        for index in [3, 0, 1, 2] {
            let (task, ()) = graph.take(|()| true).unwrap();
            assert_eq!(
                (task.stage, task.index),
                (1, index),
                "in the order in which they may start, then by index"
            );
            assert_eq!(graph.take(|()| true), None);
            graph.ended(task, true);
        }
        assert_eq!(graph.never_started(), 0);
    }

    #[test]
    fn the_first_that_fits_starts_and_a_retry_goes_before_all() {
        let plan = plan([stage("large", 2, &[]), stage("small", 2, &[])]);
        let mut graph = Graph::new(&plan, |planned| if planned.stage.name.0 == "large" { 4 } else { 1 });
        let (first, _) = graph.take(|cost| cost <= 1).unwrap();
        assert_eq!((first.stage, first.index), (1, 0));
        assert_eq!(
            graph.take(|_| true).map(|(task, cost)| (task.stage, task.index, cost)),
            Some((0, 0, 4))
        );
        graph.put_back(Ready { attempt: 1, ..first }, 2);
        assert_eq!(
            graph.take(|_| true).map(|(task, cost)| (task.stage, task.attempt, cost)),
            Some((1, 1, 2))
        );
        assert_eq!(graph.take(|cost| cost > 9), None);
    }

    #[test]
    fn only_what_is_to_do_runs() {
        let mut plan = plan([stage("a", 3, &[]), stage("b", 1, &["a"])]);
        plan.stages[0].todo = [1].into_iter().collect();
        assert_eq!(play(&plan, &[]).0, ["a/1", "b/0"]);
    }
}
