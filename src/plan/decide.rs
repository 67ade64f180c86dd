//! Which tasks run, given what ran before.

use indexmap::{IndexMap, IndexSet};

use super::identity::identity;
use super::{Plan, Reason, StagePlan, TaskSet, VERSION};
use crate::lock::Lock;
use crate::oci::Digest;
use crate::workflow::{Stage, StageName, Workflow};

/// What earlier runs of the workflow left behind, gathered by whoever does I/O.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Previous {
    pub stages: IndexMap<StageName, PreviousStage>,
}

/// A stage as it last ran.
#[derive(Clone, Debug, PartialEq)]
pub struct PreviousStage {
    pub identity: Digest,
    /// Tasks that ended well, under this identity.
    pub succeeded: TaskSet,
    /// Tasks all of whose outputs are still there.
    pub present: TaskSet,
    /// One output of a task that ended well and is gone, for people.
    pub missing: Option<String>,
}

impl Previous {
    /// Takes in a run that came after all that were taken in before: what it was to run, and which tasks ended well.
    ///
    /// What it was to run and did not finish counts as not done, whatever it was before: its outputs were removed.
    /// Which outputs are there ([`PreviousStage::present`]) is for the caller to fill in at the end.
    pub fn add_run(&mut self, plan: &Plan, succeeded: &IndexMap<StageName, TaskSet>) {
        for (name, planned) in plan.stages.iter().filter(|(_, planned)| !planned.todo.is_empty()) {
            let done = succeeded.get(name).map(|done| done.intersection(&planned.todo)).unwrap_or_default();
            let before = self
                .stages
                .get(name)
                .filter(|before| before.identity == planned.identity)
                .map(|before| before.succeeded.difference(&planned.todo))
                .unwrap_or_default();
            self.stages.insert(
                name.clone(),
                PreviousStage {
                    identity: planned.identity.clone(),
                    succeeded: before.union(&done),
                    present: TaskSet::default(),
                    missing: None,
                },
            );
        }
    }
}

impl PreviousStage {
    fn finished(&self) -> TaskSet {
        self.succeeded.intersection(&self.present)
    }
}

/// Which stages are looked at, and which run whatever they did before. The default: all, and none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// These alone, when there are any.
    pub only: IndexSet<StageName>,
    /// This one, and what needs it.
    pub from: Option<StageName>,
    /// This one, and what it needs.
    pub until: Option<StageName>,
    pub force: IndexSet<StageName>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the workflow has no stage `{name}`")]
    UnknownStage { name: StageName, near: Option<String> },
    #[error("stage `{stage}` needs `{needs}`, which is left out and has not finished as it now is")]
    NotReady { stage: StageName, needs: StageName },
    #[error("stage `{name}` is forced to run, and left out at the same time")]
    ForcedAndLeftOut { name: StageName },
}

impl PlanError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PlanError::UnknownStage { near, .. } => near.as_ref().map(|near| format!("did you mean `{near}`?")),
            PlanError::NotReady { needs, .. } => Some(format!("run `{needs}` too")),
            PlanError::ForcedAndLeftOut { .. } => None,
        }
    }
}

/// Decides for each stage which of its tasks run, and why.
///
/// A stage whose identity is not what it was runs whole, and so does one that needs a stage of which anything runs
/// (only the same indices where it needs no more than those). Otherwise the tasks run that have not ended well, or
/// whose outputs are gone.
///
/// # Errors
///
/// When the selection names no stage, or leaves out what is needed and not there.
pub fn plan(workflow: &Workflow, lock: &Lock, previous: &Previous, selection: &Selection) -> Result<Plan, PlanError> {
    let selected = selected(workflow, selection)?;
    let mut stages: IndexMap<StageName, StagePlan> = IndexMap::new();
    for (name, stage) in &workflow.stages {
        let parents: Vec<(&StageName, &Digest)> = stage
            .needs
            .iter()
            .filter_map(|need| stages.get(&need.stage))
            .map(|plan| (&plan.stage.name, &plan.identity))
            .collect();
        let (identity, parts) = identity(stage, &workflow.params, lock, &parents);
        let (todo, reason) = match previous.stages.get(name) {
            _ if !selected.contains(name) => (TaskSet::default(), Reason::NotSelected),
            _ if selection.force.contains(name) => (TaskSet::all(stage.tasks()), Reason::Forced),
            None => (TaskSet::all(stage.tasks()), Reason::NeverRan),
            Some(previous) => decide(stage, &identity, previous, &stages),
        };
        if !todo.is_empty() && !stage.always {
            let unready = stage.needs.iter().find(|need| {
                // What it was before it changed is not what this stage is to run on.
                let now = stages.get(&need.stage).map(|plan| &plan.identity);
                let before = previous.stages.get(&need.stage).filter(|before| Some(&before.identity) == now);
                let finished = before.map(PreviousStage::finished).unwrap_or_default();
                let tasks = workflow.stages.get(&need.stage).map_or(0, Stage::tasks);
                !selected.contains(&need.stage) && !TaskSet::all(tasks).difference(&finished).is_empty()
            });
            if let Some(need) = unready {
                return Err(PlanError::NotReady {
                    stage: name.clone(),
                    needs: need.stage.clone(),
                });
            }
        }
        stages.insert(
            name.clone(),
            StagePlan {
                stage: stage.clone(),
                identity,
                parts,
                todo,
                reason,
            },
        );
    }
    Ok(Plan {
        version: VERSION,
        name: workflow.name.clone(),
        file: workflow.file.clone(),
        dir: workflow.dir.clone(),
        params: workflow.params.clone(),
        lock: lock.clone(),
        stages,
    })
}

/// Of a stage that ran before, and whose needs are decided on.
fn decide(stage: &Stage, identity: &Digest, previous: &PreviousStage, before: &IndexMap<StageName, StagePlan>) -> (TaskSet, Reason) {
    let all = TaskSet::all(stage.tasks());
    let mut shards = TaskSet::default();
    let mut parent = None;
    for need in &stage.needs {
        let Some(todo) = before.get(&need.stage).map(|plan| &plan.todo).filter(|todo| !todo.is_empty()) else {
            continue;
        };
        if !need.same_shard {
            return (all, Reason::ParentRuns(need.stage.clone()));
        }
        shards = shards.union(todo);
        parent = parent.or(Some(need.stage.clone()));
    }
    if previous.identity != *identity {
        return (all, parent.map_or(Reason::Changed, Reason::ParentRuns));
    }
    let unfinished = all.difference(&previous.finished());
    let reason = match parent {
        Some(parent) => Reason::ParentRuns(parent),
        None if unfinished.is_empty() => Reason::Done,
        None if all.difference(&previous.succeeded).is_empty() => Reason::OutputMissing(previous.missing.clone().unwrap_or_default()),
        None => Reason::Unfinished,
    };
    (unfinished.union(&shards), reason)
}

fn selected<'w>(workflow: &'w Workflow, selection: &Selection) -> Result<IndexSet<&'w StageName>, PlanError> {
    let known = |name: &StageName| match workflow.stages.contains_key(name) {
        true => Ok(()),
        false => Err(PlanError::UnknownStage {
            name: name.clone(),
            near: crate::workflow::nearest(&name.0, workflow.stages.keys().map(|stage| stage.0.as_str())).map(str::to_owned),
        }),
    };
    let named = selection
        .only
        .iter()
        .chain(&selection.from)
        .chain(&selection.until)
        .chain(&selection.force);
    for name in named {
        known(name)?;
    }
    let mut selected: IndexSet<&StageName> = workflow.stages.keys().collect();
    if !selection.only.is_empty() {
        selected.retain(|name| selection.only.contains(*name));
    }
    if let Some(from) = &selection.from {
        // The stages stand in order: what needs a stage comes after it.
        let mut after: IndexSet<&StageName> = IndexSet::new();
        for (name, stage) in &workflow.stages {
            if name == from || stage.needs.iter().any(|need| after.contains(&need.stage)) {
                after.insert(name);
            }
        }
        selected.retain(|name| after.contains(*name));
    }
    if let Some(until) = &selection.until {
        let mut before: IndexSet<&StageName> = IndexSet::from([until]);
        for (name, stage) in workflow.stages.iter().rev() {
            if before.contains(name) {
                before.extend(stage.needs.iter().map(|need| &need.stage));
            }
        }
        selected.retain(|name| before.contains(*name));
    }
    match selection.force.iter().find(|name| !selected.contains(*name)) {
        Some(name) => Err(PlanError::ForcedAndLeftOut { name: name.clone() }),
        None => Ok(selected),
    }
}
