//! A plan for people.

use serde::Serialize;

use super::{Plan, Reason, StagePlan};
use crate::workflow::{Resources, StageName};

/// A line of `dvrun plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageSummary {
    pub name: StageName,
    pub tasks: u32,
    /// Tasks that will run.
    pub todo: u32,
    pub reason: String,
    pub needs: Vec<StageName>,
    /// Of one task: `4 cpus, 16G, 04:00:00, 1 gpu`.
    pub resources: String,
}

/// One line a stage, in the order in which they run.
pub fn summary(plan: &Plan) -> Vec<StageSummary> {
    plan.stages
        .iter()
        .map(|(name, stage)| StageSummary {
            name: name.clone(),
            tasks: stage.stage.tasks(),
            todo: stage.todo.len(),
            reason: reason(stage),
            needs: stage.stage.needs.iter().map(|need| need.stage.clone()).collect(),
            resources: resources(&stage.stage.resources),
        })
        .collect()
}

fn reason(stage: &StagePlan) -> String {
    match &stage.reason {
        Reason::Done => "done".into(),
        Reason::NeverRan => "never ran".into(),
        Reason::Unfinished => match stage.stage.tasks() {
            1 => "did not finish".into(),
            tasks => format!("{} of {tasks} tasks did not finish", stage.todo.len()),
        },
        Reason::Changed => "changed since it last ran".into(),
        Reason::OutputMissing(output) if output.is_empty() => "an output is gone".into(),
        Reason::OutputMissing(output) => format!("an output is gone: {output}"),
        Reason::ParentRuns(parent) => format!("needs `{parent}`, which runs"),
        Reason::Forced => "forced".into(),
        Reason::NotSelected => "not selected".into(),
        Reason::Prepares => "brings images and data into the store".into(),
    }
}

fn resources(resources: &Resources) -> String {
    let several = |count: u32, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    [
        resources.nodes.map(|nodes| several(nodes, "node")),
        resources.tasks.map(|tasks| several(tasks, "MPI task")),
        Some(several(resources.cpus, "cpu")),
        resources.memory.map(|memory| memory.to_string()),
        resources.time.map(|time| time.to_string()),
        (resources.gpus > 0).then(|| several(resources.gpus, "gpu")),
        resources.scratch.map(|scratch| format!("{scratch} of scratch")),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}
