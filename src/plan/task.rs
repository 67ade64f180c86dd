//! One task of a plan.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::identity::Uses;
use super::{Plan, StagePlan, Task};
use crate::binds::{self, BindConflict, ResolvedBind, Sight, WorkFolder};
use crate::workflow::paths::absolute;
use crate::workflow::scope::Scope;
use crate::workflow::template::{self, Piece};
use crate::workflow::{Array, Command, Stage, StageName, Template, TemplateError};

/// Why a task cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    #[error("the plan has no stage `{0}`")]
    NoSuchStage(StageName),
    #[error("stage `{stage}` has {count} tasks: there is no task {index}")]
    NoSuchTask { stage: StageName, index: u32, count: u32 },
    #[error("{what} of stage `{stage}` cannot be expanded for task {index}")]
    Template {
        stage: StageName,
        index: u32,
        what: &'static str,
        source: TemplateError,
    },
    #[error("the binds of stage `{stage}` are at odds")]
    Binds { stage: StageName, source: BindConflict },
    #[error("`{path}`, {what} of stage `{stage}`, is no absolute path")]
    NotAbsolute {
        stage: StageName,
        what: &'static str,
        path: String,
    },
}

impl TaskError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            TaskError::Template { source, .. } => source.hint(),
            _ => None,
        }
    }
}

/// Expands task `index` of a stage, for the run in `run_dir` (absolute).
///
/// # Errors
///
/// When there is no such task, or what it says cannot be expanded: a checked workflow leaves few reasons for that.
pub fn task(plan: &Plan, stage: &StageName, index: u32, run_dir: &Path) -> Result<Task, TaskError> {
    let found = plan.stages.get(stage).ok_or_else(|| TaskError::NoSuchStage(stage.clone()))?;
    let stage = &found.stage;
    if index >= stage.tasks() {
        return Err(TaskError::NoSuchTask {
            stage: stage.name.clone(),
            index,
            count: stage.tasks(),
        });
    }
    let expand = Expand::new(plan, stage, index, run_dir);
    let outputs = stage
        .outputs
        .iter()
        .map(|output| expand.text("an output", output))
        .collect::<Result<Vec<_>, _>>()?;
    let (cwd, work) = match &stage.workdir {
        None => (plan.dir.clone(), WorkFolder::Workflow),
        Some(workdir) => {
            let text = expand.text("the working directory", workdir)?;
            let path = absolute(&plan.dir, &text);
            match text.starts_with('/') {
                true => (path, WorkFolder::Inside),
                false => (path.clone(), WorkFolder::Own(path)),
            }
        }
    };
    let written = outputs
        .iter()
        .map(|output| absolute(&plan.dir, binds::fixed_folder(output)))
        .collect();
    let sight = Sight {
        explicit: explicit(plan, &expand)?,
        data: Uses::data_of(stage, &plan.lock.data)
            .into_iter()
            .map(|(_, data)| data.path.clone())
            .collect(),
        dir: plan.dir.clone(),
        work,
        written,
        needed: needed(plan, found, run_dir)?,
    };
    let binds = binds::resolve(sight).map_err(|source| TaskError::Binds {
        stage: stage.name.clone(),
        source,
    })?;
    Ok(Task {
        stage: stage.name.clone(),
        index,
        image: stage.image.clone(),
        command: expand.command()?,
        env: stage
            .env
            .iter()
            .map(|(name, value)| Ok((name.clone(), expand.text("the environment", value)?)))
            .collect::<Result<_, TaskError>>()?,
        binds,
        outputs: outputs.iter().map(|output| absolute_pattern(&plan.dir, output)).collect(),
        cwd,
        user: stage.user,
        resources: stage.resources.clone(),
    })
}

fn scope(plan: &Plan, stage: &Stage, index: u32, run_dir: &Path) -> Scope {
    let data = plan.lock.data.iter().map(|(name, data)| {
        let files = data.files.iter().map(String::as_str).collect();
        (name.as_str(), data.path.display().to_string(), files)
    });
    let images = plan
        .lock
        .images
        .iter()
        .map(|(name, image)| (name.as_str(), image.digest.as_ref().map(ToString::to_string)));
    let scope = Scope::builder()
        .params(&plan.params)
        .data(data)
        .images(images)
        .stage(&stage.name.0, &stage.resources)
        .run(&run_dir.display().to_string());
    match &stage.array {
        Some(array) => scope.array(array, index).build(),
        None => scope.build(),
    }
}

/// The templates of one task.
struct Expand<'p> {
    plan: &'p Plan,
    stage: &'p Stage,
    index: u32,
    run_dir: &'p Path,
    /// Made for the first template that has an expression: all data sets with all of their files are in it.
    scope: OnceCell<Scope>,
}

impl<'p> Expand<'p> {
    fn new(plan: &'p Plan, stage: &'p Stage, index: u32, run_dir: &'p Path) -> Expand<'p> {
        Expand {
            plan,
            stage,
            index,
            run_dir,
            scope: OnceCell::new(),
        }
    }

    fn text(&self, what: &'static str, template: &Template) -> Result<String, TaskError> {
        if template::is_literal(&template.0) {
            return Ok(template.0.clone());
        }
        let scope = self.scope.get_or_init(|| scope(self.plan, self.stage, self.index, self.run_dir));
        template::render(&template.0, scope).map_err(|source| TaskError::Template {
            stage: self.stage.name.clone(),
            index: self.index,
            what,
            source,
        })
    }

    fn list(&self, templates: &[Template]) -> Result<Vec<Template>, TaskError> {
        templates
            .iter()
            .map(|template| self.text("the command", template).map(Template))
            .collect()
    }

    fn command(&self) -> Result<Command, TaskError> {
        Ok(match &self.stage.command {
            Command::App { name, args } => Command::App {
                name: name.clone(),
                args: self.list(args)?,
            },
            Command::Argv(words) => Command::Argv(self.list(words)?),
            Command::Script(script) => Command::Script(Template(self.text("the script", script)?)),
            Command::Entrypoint { args } => Command::Entrypoint { args: self.list(args)? },
        })
    }
}

fn explicit(plan: &Plan, expand: &Expand<'_>) -> Result<Vec<ResolvedBind>, TaskError> {
    let mut binds = Vec::new();
    for bind in &expand.stage.binds {
        let source = absolute(&plan.dir, &expand.text("a bind's source", &bind.source)?);
        let target = expand.text("a bind's target", &bind.target)?;
        if !target.starts_with('/') {
            return Err(TaskError::NotAbsolute {
                stage: expand.stage.name.clone(),
                what: "a bind's target",
                path: target,
            });
        }
        binds.push(ResolvedBind {
            source,
            target: absolute(Path::new("/"), &target),
            mode: bind.mode,
            optional: bind.optional,
            create: false,
        });
    }
    Ok(binds)
}

/// Where the stages before this one write, however far back: the folders that all tasks of each share.
fn needed(plan: &Plan, stage: &StagePlan, run_dir: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let mut names: Vec<&StageName> = stage.stage.needs.iter().map(|need| &need.stage).collect();
    let mut seen: BTreeSet<&StageName> = names.iter().copied().collect();
    let mut folders = Vec::new();
    let mut at = 0;
    while let Some(parent) = names.get(at).and_then(|name| plan.stages.get(*name)) {
        at += 1;
        let parent = &parent.stage;
        names.extend(parent.needs.iter().map(|need| &need.stage).filter(|name| seen.insert(name)));
        if parent.outputs.is_empty() {
            continue;
        }
        let expand = Expand::new(plan, parent, 0, run_dir);
        for output in &parent.outputs {
            let shared = expand.text("an output", &Template(shared_part(&output.0, parent.array.as_ref())))?;
            let folder = absolute(&plan.dir, binds::fixed_folder(&shared));
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    Ok(folders)
}

/// A template up to where it begins to differ between the tasks of an array.
fn shared_part(template: &str, array: Option<&Array>) -> String {
    let Ok(pieces) = template::pieces(template) else {
        return String::new();
    };
    let mut shared = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => shared.push_str(text),
            Piece::Expression { whole, .. } => {
                let text = &template[whole];
                let names = template::names(text).unwrap_or_default();
                let differs = |path: &str| path.starts_with("array") && path != "array.count";
                if array.is_some() && names.iter().any(|name| differs(&name.path)) {
                    break;
                }
                shared.push_str(text);
            }
        }
    }
    shared
}

/// An output as an absolute pattern: the folder's own name is no pattern.
fn absolute_pattern(dir: &Path, output: &str) -> String {
    match output.starts_with('/') {
        true => output.to_owned(),
        false => format!(
            "{}/{}",
            glob::Pattern::escape(&dir.display().to_string()).trim_end_matches('/'),
            output.trim_start_matches("./")
        ),
    }
}
