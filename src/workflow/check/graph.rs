//! The order of the stages.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::super::problem::{Problems, suggest};
use super::fields::shown;
use super::stage::Read;

/// Reports needs that cannot be met, and gives the stages' places in an order in which each comes after all that it
/// needs; otherwise they stay in the file's order.
pub fn order(stages: &[Read<'_>], problems: &mut Problems) -> Vec<usize> {
    let index: HashMap<&str, usize> = stages.iter().enumerate().map(|(i, read)| (read.stage.name.0.as_str(), i)).collect();
    // For each stage: which it needs, and where that is written.
    let mut edges: Vec<Vec<(usize, Range<usize>)>> = vec![Vec::new(); stages.len()];
    for (at, read) in stages.iter().enumerate() {
        for (need, place) in read.stage.needs.iter().zip(&read.needs) {
            match index.get(need.stage.0.as_str()) {
                Some(&other) if other == at => {
                    problems.add(place.clone(), format!("stage `{}` needs itself", read.stage.name));
                }
                Some(&other) => {
                    edges[at].push((other, place.clone()));
                    let (here, there) = (read.stage.tasks(), stages[other].stage.tasks());
                    if need.same_shard && here != there {
                        problems.add(
                            place.clone(),
                            format!(
                                "`shard: same` needs arrays of one size: `{}` has {there}, `{}` has {here}",
                                need.stage, read.stage.name
                            ),
                        );
                    }
                }
                None => problems.hint(
                    place.clone(),
                    format!("unknown stage `{}`", shown(&need.stage.0)),
                    suggest(
                        &need.stage.0,
                        stages
                            .iter()
                            .map(|read| read.stage.name.0.as_str())
                            .filter(|name| *name != read.stage.name.0),
                    ),
                ),
            }
        }
    }
    let order = sorted(&edges);
    if order.len() < stages.len() {
        let done: HashSet<usize> = order.iter().copied().collect();
        report_cycle(stages, &edges, &done, problems);
        return (0..stages.len()).collect();
    }
    order
}

/// As far as it goes; of those that could come next, the first in the file does.
fn sorted(edges: &[Vec<(usize, Range<usize>)>]) -> Vec<usize> {
    let mut waits: Vec<usize> = edges.iter().map(Vec::len).collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    for (at, parents) in edges.iter().enumerate() {
        for (parent, _) in parents {
            children[*parent].push(at);
        }
    }
    let mut ready: std::collections::BTreeSet<usize> = (0..edges.len()).filter(|&at| waits[at] == 0).collect();
    let mut order = Vec::new();
    while let Some(at) = ready.pop_first() {
        order.push(at);
        for &child in &children[at] {
            waits[child] -= 1;
            if waits[child] == 0 {
                ready.insert(child);
            }
        }
    }
    order
}

/// Every stage that is left waits for another that is left: walking from one to the next comes back somewhere.
fn report_cycle(stages: &[Read<'_>], edges: &[Vec<(usize, Range<usize>)>], done: &HashSet<usize>, problems: &mut Problems) {
    let Some(start) = (0..stages.len()).find(|at| !done.contains(at)) else {
        return;
    };
    let mut path: Vec<(usize, Range<usize>)> = Vec::new();
    let mut at = start;
    loop {
        if let Some(from) = path.iter().position(|(stage, _)| *stage == at) {
            path.drain(..from);
            break;
        }
        let Some((next, place)) = edges[at].iter().find(|(parent, _)| !done.contains(parent)) else {
            return;
        };
        path.push((at, place.clone()));
        at = *next;
    }
    // Told from the stage that stands first in the file.
    let first = (0..path.len()).min_by_key(|&i| path[i].0).unwrap_or(0);
    path.rotate_left(first);
    let names: Vec<String> = path
        .iter()
        .chain(path.first())
        .map(|(stage, _)| format!("`{}`", stages[*stage].stage.name))
        .collect();
    let place = path.first().map_or(0..0, |(_, place)| place.clone());
    problems.add(place, format!("these stages need each other: {}", names.join(" needs ")));
}
