//! What earlier runs left that need not run again.

use std::path::Path;
use std::rc::Rc;

use indexmap::IndexMap;

use super::outputs;
use super::overlap::Places;
use super::task::TaskError;
use crate::plan::{self, Plan, Previous, TaskSet};
use crate::state::{Outcome, RunDir, StateError};
use crate::workflow::StageName;

/// What the runs of the workflow `file` know, all together, and the newest of them. Runs of other files in the same folder
/// count for what they wrote over.
///
/// # Errors
/// A run folder that cannot be read. One of another version of dvrun is no error: what was done up to it is not known, and
/// is done again.
pub fn previous(file: &Path) -> Result<(Previous, Option<RunDir>), TaskError> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let mut known = Known::default();
    for run in RunDir::list(dir)? {
        let mut plan = match run.plan() {
            Ok(plan) => plan,
            Err(StateError::Version { .. }) => {
                known = Known::default();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // The folder may have been moved, or copied, since.
        plan.dir = dir.to_owned();
        if plan.file.file_name() == file.file_name() {
            known.add(run, plan)?;
        } else {
            known.written_over_by(&run, &plan)?;
        }
    }
    known.look()?;
    Ok((known.previous, known.newest))
}

#[derive(Default)]
struct Known {
    previous: Previous,
    /// Where each stage ran last.
    ran: IndexMap<StageName, (Rc<Plan>, RunDir)>,
    newest: Option<RunDir>,
}

impl Known {
    fn add(&mut self, run: RunDir, plan: Plan) -> Result<(), TaskError> {
        let mut succeeded = IndexMap::new();
        for (name, planned) in plan.stages.iter().filter(|(_, planned)| !planned.todo.is_empty()) {
            succeeded.insert(name.clone(), finished(&run, name, planned.stage.tasks())?);
        }
        self.previous.add_run(&plan, &succeeded);
        let plan = Rc::new(plan);
        for name in succeeded.into_keys() {
            self.ran.insert(name, (Rc::clone(&plan), run.clone()));
        }
        self.newest = Some(run);
        Ok(())
    }

    fn written_over_by(&mut self, run: &RunDir, plan: &Plan) -> Result<(), TaskError> {
        let mut places = Places::default();
        for (name, planned) in &plan.stages {
            for index in planned.todo.iter() {
                let task = plan::task(plan, name, index, run.path())?;
                task.outputs.iter().for_each(|pattern| places.add(pattern));
            }
        }
        if places.is_empty() {
            return Ok(());
        }
        for (name, stage) in &mut self.previous.stages {
            let (plan, run) = &self.ran[name];
            let mut lost = Vec::new();
            for index in stage.succeeded.iter() {
                let task = plan::task(plan, name, index, run.path())?;
                if task.outputs.iter().any(|pattern| places.meets(pattern)) {
                    lost.push(index);
                }
            }
            stage.succeeded = stage.succeeded.difference(&lost.into_iter().collect());
        }
        Ok(())
    }

    /// Which of what succeeded still has its outputs.
    fn look(&mut self) -> Result<(), TaskError> {
        for (name, stage) in &mut self.previous.stages {
            let (plan, run) = &self.ran[name];
            let mut present = Vec::new();
            for index in stage.succeeded.iter() {
                let task = plan::task(plan, name, index, run.path())?;
                match outputs::missing(&task.outputs)? {
                    None => present.push(index),
                    Some(pattern) => {
                        stage.missing.get_or_insert_with(|| pattern.to_owned());
                    }
                }
            }
            stage.present = present.into_iter().collect();
        }
        Ok(())
    }
}

/// In which run each task of a stage ran that is done in a run: there are its logs.
pub struct Makers(Vec<(RunDir, TaskSet)>);

impl Makers {
    /// The run in which task `index` ran; `None` where that is gone.
    pub fn of(&self, index: u32) -> Option<&RunDir> {
        let (run, _) = self.0.iter().find(|(_, tasks)| tasks.contains(index))?;
        Some(run)
    }
}

/// Looks through the runs before `run` for the tasks of `stage` that did not have to run in it.
///
/// # Errors
/// Runs that cannot be read.
pub fn makers(run: &RunDir, plan: &Plan, stage: &StageName) -> Result<Makers, StateError> {
    let planned = &plan.stages[stage];
    let mut makers = vec![(run.clone(), planned.todo.clone())];
    let mut left = TaskSet::all(planned.stage.tasks()).difference(&planned.todo);
    // The folder may have been moved since: where it lies is what counts.
    let dir = run.path().ancestors().nth(3).unwrap_or(&plan.dir);
    for earlier in RunDir::list(dir)?
        .into_iter()
        .rev()
        .skip_while(|earlier| earlier.path() >= run.path())
    {
        if left.is_empty() {
            break;
        }
        let before = match earlier.plan_of(stage) {
            Err(StateError::Version { .. }) => break,
            other => other?,
        };
        let same_file = before.file.file_name() == plan.file.file_name();
        if let Some(before) = before
            .stages
            .get(stage)
            .filter(|before| same_file && before.identity == planned.identity)
        {
            let here = left.intersection(&before.todo);
            left = left.difference(&here);
            makers.push((earlier, here));
        }
    }
    Ok(Makers(makers))
}

fn finished(run: &RunDir, stage: &StageName, tasks: u32) -> Result<TaskSet, TaskError> {
    let records = run.records(stage).read(tasks).map_err(TaskError::Record)?;
    let ok = |record: &Option<crate::state::Record>| record.as_ref().is_some_and(|record| record.outcome == Outcome::Ok);
    Ok((0u32..)
        .zip(&records)
        .filter(|(_, record)| ok(record))
        .map(|(index, _)| index)
        .collect())
}

/// Carries the records of what `plan` need not run again from the earlier run `from` to the new run `to`. What did not end
/// well, or ended well as something else than what the stage is now, has nothing to carry.
///
/// # Errors
/// Reading the one or writing the other.
pub fn inherit(from: &RunDir, to: &RunDir, plan: &Plan) -> Result<(), TaskError> {
    let before = match from.plan() {
        Ok(before) => before,
        Err(StateError::Version { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for (name, planned) in &plan.stages {
        let same = before.stages.get(name).is_some_and(|before| before.identity == planned.identity);
        if !same {
            continue;
        }
        let keep = finished(from, name, planned.stage.tasks())?.difference(&planned.todo);
        to.records(name).inherit(&from.records(name), &keep).map_err(TaskError::Record)?;
    }
    Ok(())
}
