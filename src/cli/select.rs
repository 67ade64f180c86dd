//! Which run, and which part of it, a command is about.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use super::failure::{Failure, exit};
use crate::plan::{Plan, TaskSet};
use crate::state::RunDir;
use crate::workflow::StageName;

/// `STAGE` or `STAGE/INDEX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    stage: String,
    pub index: Option<u32>,
}

impl FromStr for Selection {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('/').and_then(|(stage, index)| Some((stage, index.parse().ok()?)));
        Ok(match parts {
            Some((stage, index)) => Selection {
                stage: stage.to_owned(),
                index: Some(index),
            },
            None => Selection {
                stage: text.to_owned(),
                index: None,
            },
        })
    }
}

impl Selection {
    /// The stage of `plan` that is meant.
    ///
    /// # Errors
    /// No such stage; the nearest name is the hint.
    pub fn in_plan(&self, plan: &Plan) -> Result<StageName, Failure> {
        let name = StageName(self.stage.clone());
        if plan.stages.contains_key(&name) {
            return Ok(name);
        }
        let names = plan.stages.keys().map(|name| name.0.as_str());
        let nearest = names
            .clone()
            .max_by(|a, b| strsim::jaro(a, &self.stage).total_cmp(&strsim::jaro(b, &self.stage)));
        let failure = Failure::message(exit::USAGE, format!("the workflow has no stage `{}`", self.stage));
        Err(failure.hint(format!(
            "did you mean `{}`? The stages are: {}",
            nearest.unwrap_or_default(),
            names.collect::<Vec<_>>().join(", ")
        )))
    }
}

impl Selection {
    /// The stage, and the index where one is given.
    ///
    /// # Errors
    /// No such stage, or no such task of it.
    pub fn task_in(&self, plan: &Plan) -> Result<(StageName, Option<u32>), Failure> {
        let stage = self.in_plan(plan)?;
        let tasks = plan.stages[&stage].stage.tasks();
        match self.index {
            Some(index) if index >= tasks => Err(Failure::message(
                exit::USAGE,
                format!("{stage} has tasks 0 to {}, not {index}", tasks - 1),
            )),
            index => Ok((stage, index)),
        }
    }
}

/// `STAGE`, `STAGE/INDICES` (`3`, `0-4,7`) or `STAGE/failed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub stage: Selection,
    pub tasks: Tasks,
}

/// Some tasks of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tasks {
    All,
    /// Those that did not end well.
    Failed,
    These(TaskSet),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (stage, tasks) = match text.split_once('/') {
            None => (text, Tasks::All),
            Some((stage, "failed")) => (stage, Tasks::Failed),
            Some((stage, indices)) => (stage, Tasks::These(indices_of(indices)?)),
        };
        Ok(Target {
            stage: Selection {
                stage: stage.to_owned(),
                index: None,
            },
            tasks,
        })
    }
}

fn indices_of(text: &str) -> Result<TaskSet, String> {
    let wrong = || format!("`{text}` are no indices; write `3`, `0-4,7` or `failed`");
    let mut all = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
        // No workflow has larger arrays.
        if first > last || last > 10_000_000 {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    Ok(all.into_iter().collect())
}

/// The folder of the workflow that the caller stands in: the nearest one upwards that has a `.dvrun`.
pub fn workflow_dir() -> Result<PathBuf, Failure> {
    let here = std::env::current_dir().map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    let found = here.ancestors().find(|dir| RunDir::all(dir).is_dir()).map(PathBuf::from);
    found.ok_or_else(|| {
        Failure::message(
            exit::USAGE,
            format!("no run here: neither {} nor a folder above it has a .dvrun folder", here.display()),
        )
        .hint("go to the workflow's folder, or name the run: its path is WORKFLOW_FOLDER/.dvrun/runs/ID")
    })
}

/// The run named (an id, the end of one, or the path of a run or of a workflow's folder); the newest where none is.
pub fn find_run(named: Option<&str>) -> Result<RunDir, Failure> {
    if let Some(path) = named.map(PathBuf::from).filter(|path| path.join("plan.json").is_file()) {
        return Ok(RunDir::at(path));
    }
    if let Some(dir) = named.map(PathBuf::from).filter(|path| RunDir::all(path).is_dir()) {
        return newest(dir);
    }
    let dir = workflow_dir()?;
    match named {
        Some(id) => Ok(RunDir::open(&dir, id)?),
        None => newest(dir),
    }
}

fn newest(dir: PathBuf) -> Result<RunDir, Failure> {
    RunDir::latest(&dir)?.ok_or_else(|| Failure::message(exit::USAGE, format!("nothing has run in {} yet", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_as_people_name_them() {
        let tasks = |text: &str| text.parse::<Target>().map(|target| target.tasks);
        assert_eq!(tasks("call"), Ok(Tasks::All));
        assert_eq!(tasks("call/failed"), Ok(Tasks::Failed));
        assert_eq!(tasks("call/7,0-2"), Ok(Tasks::These([0, 1, 2, 7].into_iter().collect())));
        for wrong in ["call/", "call/x", "call/3-1", "call/1,,2", "call/0-4000000000"] {
            assert!(tasks(wrong).is_err(), "{wrong}");
        }
    }
}
