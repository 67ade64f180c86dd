//! Tasks that ran already, run again within their run: which, and what is forgotten of them.

use std::path::PathBuf;

use indexmap::IndexMap;

use super::outputs;
use super::task::TaskError;
use crate::plan::{self, Plan, TaskSet};
use crate::state::{Event, Outcome, RunDir};
use crate::workflow::StageName;
use crate::workflow::units::{Bytes, Seconds};

/// What is to run again.
#[derive(Clone, Debug)]
pub struct Request {
    pub stage: StageName,
    pub tasks: TaskSet,
    pub reach: Reach,
    pub changes: Changes,
}

/// How far a rerun goes beyond the stage itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The named tasks, and nothing else.
    Only,
    /// With what needs them and did not end well.
    Unfinished,
    /// With all that needs them.
    Downstream,
}

/// Resources that the stage is to have from now on; `None` leaves them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub cpus: Option<u32>,
    pub memory: Option<Bytes>,
    pub time: Option<Seconds>,
}

/// The tasks of each stage, in the plan's order.
pub type Chosen = IndexMap<StageName, TaskSet>;

/// Why nothing is run again.
#[derive(Debug, thiserror::Error)]
pub enum RerunError {
    #[error("stage {stage} has tasks 0 to {last}, not {tasks}")]
    NoSuchTask { stage: StageName, tasks: TaskSet, last: u32 },
    #[error("stage {stage} needs {needs}, which has not ended well")]
    NotReady { stage: StageName, needs: StageName },
    #[error("tasks of stage {stage} are still queued or running: {tasks}")]
    Active { stage: StageName, tasks: TaskSet },
    #[error("cannot read the records {}", path.display())]
    Records { path: PathBuf, source: std::io::Error },
    #[error("cannot forget how the tasks ended")]
    Reset(#[from] TaskError),
}

impl RerunError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        match self {
            RerunError::NotReady { needs, .. } => Some(format!("run that again: `dvrun rerun {needs}`; what waits for it follows")),
            RerunError::Active { stage, .. } => Some(format!("wait, or end them first: `dvrun cancel {stage}`")),
            RerunError::NoSuchTask { .. } | RerunError::Records { .. } => None,
            RerunError::Reset(error) => error.hint(),
        }
    }
}

/// Which tasks run again: those asked for, and what needs them as far as `request` reaches.
///
/// # Errors
/// Tasks that there are not, or whose needs have not ended well.
pub fn choose(run: &RunDir, plan: &Plan, request: &Request) -> Result<Chosen, RerunError> {
    let all = TaskSet::all(plan.stages[&request.stage].stage.tasks());
    let beyond = request.tasks.difference(&all);
    if !beyond.is_empty() {
        return Err(RerunError::NoSuchTask {
            stage: request.stage.clone(),
            tasks: beyond,
            last: plan.stages[&request.stage].stage.tasks() - 1,
        });
    }
    ready(run, plan, request)?;
    let mut chosen = Chosen::from([(request.stage.clone(), request.tasks.clone())]);
    if request.reach == Reach::Only {
        return Ok(chosen);
    }
    for (name, planned) in &plan.stages {
        let mut affected = TaskSet::default();
        for need in &planned.stage.needs {
            match chosen.get(&need.stage) {
                Some(tasks) if need.same_shard => affected = affected.union(tasks),
                Some(_) => affected = TaskSet::all(planned.stage.tasks()),
                None => {}
            }
        }
        if request.reach == Reach::Unfinished && !affected.is_empty() {
            affected = affected.difference(&ended_well(run, plan, name)?);
        }
        if !affected.is_empty() {
            chosen.insert(name.clone(), affected);
        }
    }
    Ok(chosen)
}

/// The tasks of a stage that ended well.
///
/// # Errors
/// Records that cannot be read.
pub fn ended_well(run: &RunDir, plan: &Plan, stage: &StageName) -> Result<TaskSet, RerunError> {
    let records = run.records(stage);
    let read = records.read(plan.stages[stage].stage.tasks());
    let read = read.map_err(|source| RerunError::Records {
        path: records.path().to_owned(),
        source,
    })?;
    let well = |index: &u32| read[*index as usize].as_ref().is_some_and(|record| record.outcome == Outcome::Ok);
    Ok((0..plan.stages[stage].stage.tasks()).filter(well).collect())
}

fn ready(run: &RunDir, plan: &Plan, request: &Request) -> Result<(), RerunError> {
    let stage = &plan.stages[&request.stage].stage;
    if stage.always {
        return Ok(());
    }
    for need in &stage.needs {
        let wanted = match need.same_shard {
            true => request.tasks.clone(),
            false => TaskSet::all(plan.stages[&need.stage].stage.tasks()),
        };
        if !wanted.difference(&ended_well(run, plan, &need.stage)?).is_empty() {
            return Err(RerunError::NotReady {
                stage: request.stage.clone(),
                needs: need.stage.clone(),
            });
        }
    }
    Ok(())
}

/// Gives the stage the resources that `request` asks for.
pub fn change(plan: &mut Plan, request: &Request) {
    let (resources, changes) = (&mut plan.stages[&request.stage].stage.resources, request.changes);
    resources.cpus = changes.cpus.unwrap_or(resources.cpus);
    resources.memory = changes.memory.or(resources.memory);
    resources.time = changes.time.or(resources.time);
}

/// Takes `chosen` back to the state before they ran: plan and journal say so first, then outputs and records go.
/// Whatever is cut short, calling again completes it. None of the tasks may be running.
///
/// # Errors
/// The run folder or an output that cannot be written.
pub fn reset(run: &RunDir, plan: &mut Plan, chosen: &Chosen) -> Result<(), TaskError> {
    for (name, tasks) in chosen {
        let planned = &mut plan.stages[name];
        planned.todo = planned.todo.union(tasks);
    }
    run.replace_plan(plan)?;
    let mut journal = run.journal()?;
    for (name, tasks) in chosen {
        let event = Event::Rerun {
            stage: name.clone(),
            tasks: tasks.clone(),
        };
        journal.append(&event).map_err(|source| TaskError::Folder {
            doing: "write",
            path: run.journal_path(),
            source,
        })?;
    }
    for (name, tasks) in chosen {
        run.records(name).clear(tasks).map_err(TaskError::Record)?;
        for index in tasks.iter() {
            outputs::remove(&plan::task(plan, name, index, run.path())?.outputs)?;
        }
    }
    Ok(())
}

/// The plan of the tasks in `chosen` alone.
pub fn narrowed(plan: &Plan, chosen: &Chosen) -> Plan {
    let mut plan = plan.clone();
    for (name, planned) in &mut plan.stages {
        planned.todo = chosen.get(name).cloned().unwrap_or_default();
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::local::unstarted;
    use crate::engine::testing::{plan, stage};
    use crate::state::{Mode, RunInfo};

    fn request(stage: &str, tasks: &[u32], reach: Reach) -> Request {
        Request {
            stage: StageName(stage.into()),
            tasks: tasks.iter().copied().collect(),
            reach,
            changes: Changes::default(),
        }
    }

    fn texts(chosen: &Chosen) -> Vec<String> {
        chosen.iter().map(|(name, tasks)| format!("{name} {tasks}")).collect()
    }

    #[test]
    fn what_needs_a_task_follows_as_far_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let mut pairs = stage("pairs", 3, &["a"]);
        pairs.needs[0].same_shard = true;
        let mut plan = plan([stage("a", 3, &[]), pairs, stage("last", 1, &["pairs"]), stage("other", 1, &[])]);
        plan.dir = folder.path().to_owned();
        let info = RunInfo {
            mode: Mode::Local,
            user: String::new(),
            host: String::new(),
            created: 0,
            version: String::new(),
        };
        let run = RunDir::draft(folder.path(), &info, &plan)
            .and_then(|draft| draft.publish())
            .unwrap();
        let end = |stage: &str, index, outcome| {
            let record = unstarted(outcome, String::new());
            run.records(&StageName(stage.into())).write(index, &record).unwrap();
        };
        for index in 0..3 {
            end("a", index, if index == 1 { Outcome::OutOfMemory } else { Outcome::Ok });
            end("pairs", index, if index == 1 { Outcome::UpstreamFailed } else { Outcome::Ok });
        }
        end("last", 0, Outcome::UpstreamFailed);
        let chosen = |request: &Request| choose(&run, &plan, request).map(|chosen| texts(&chosen)).map_err(|e| e.to_string());
        assert_eq!(chosen(&request("a", &[1], Reach::Only)).unwrap(), ["a 1"]);
        assert_eq!(
            chosen(&request("a", &[1], Reach::Unfinished)).unwrap(),
            ["a 1", "pairs 1", "last 0"]
        );
        assert_eq!(chosen(&request("a", &[0], Reach::Unfinished)).unwrap(), ["a 0"]);
        assert_eq!(
            chosen(&request("a", &[0], Reach::Downstream)).unwrap(),
            ["a 0", "pairs 0", "last 0"]
        );
        assert_eq!(
            chosen(&request("a", &[1, 7], Reach::Only)).unwrap_err(),
            "stage a has tasks 0 to 2, not 7"
        );
        assert_eq!(
            chosen(&request("pairs", &[1], Reach::Only)).unwrap_err(),
            "stage pairs needs a, which has not ended well"
        );
        let (mut changed, mut request) = (plan.clone(), request("a", &[1], Reach::Unfinished));
        let chosen = choose(&run, &plan, &request).unwrap();
        request.changes.memory = Some(Bytes(7));
        change(&mut changed, &request);
        reset(&run, &mut changed, &chosen).unwrap();
        assert_eq!(run.plan().unwrap().stages[0].stage.resources.memory, Some(Bytes(7)));
        assert_eq!(ended_well(&run, &plan, &request.stage).unwrap(), [0, 2].into_iter().collect());
        assert_eq!(run.records(&request.stage).read_one(1).unwrap(), None);
        assert_eq!(narrowed(&changed, &chosen).stages[3].todo, TaskSet::default());
    }
}
