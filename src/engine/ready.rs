//! What can be known to go wrong before anything starts: missing bind sources, programs and apps that the image does not
//! have. A stage that waits a day in a queue should not end on a typing mistake.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::image::{self, TaskImage};
use super::overlap::Places;
use super::task::TaskError;
use crate::plan::{self, Plan, StagePlan, Task};
use crate::runtime::{self, AppError, DEFAULT_PATH, ImageAccess, NoProgram};
use crate::state::RunDir;
use crate::workflow::{Command, StageName};

/// One thing that keeps a stage from running.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    #[error("stage `{stage}`: the bind source {} does not exist", path.display())]
    Bind { stage: StageName, path: PathBuf },
    #[error("stage `{stage}`: the image has no program `{program}` (looked in {})", missing.looked_in)]
    Program {
        stage: StageName,
        program: String,
        missing: NoProgram,
    },
    #[error("stage `{stage}`: {source}")]
    App { stage: StageName, source: AppError },
    #[error("stage `{stage}`: {source}")]
    Launch { stage: StageName, source: runtime::LaunchError },
}

impl Obstacle {
    pub fn hint(&self) -> Option<String> {
        match self {
            Obstacle::Bind { .. } => {
                Some("declare it as `data`, or as the output of a stage that is needed, or make the bind `optional`".into())
            }
            Obstacle::Program { missing, .. } => Some(match &missing.near {
                Some(near) => format!("did you mean `{near}`?"),
                None => "give its path in the image, or add its folder to PATH with `env`".into(),
            }),
            Obstacle::App { source, .. } => source.hint(),
            Obstacle::Launch { source, .. } => source.hint(),
        }
    }
}

/// Whether the plan's images and data are in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provision {
    There,
    /// The run's first job brings them.
    Coming,
}

/// All that keeps the tasks of `plan` that are to run from running, each thing once. Images are looked into where they
/// are in the store.
///
/// # Errors
/// Templates that cannot be expanded, and a store or an image that cannot be read.
pub fn obstacles(plan: &Plan, provision: Provision) -> Result<Vec<Obstacle>, TaskError> {
    // The run's folder is not made yet; nothing can be in it.
    let run = RunDir::all(&plan.dir).join("RUN");
    let mut made = made(plan, &run)?;
    if provision == Provision::Coming {
        made.folders.extend(plan.lock.data.values().map(|data| data.path.clone()));
    }
    let mut obstacles = Vec::new();
    for (name, planned) in &plan.stages {
        let image = image(plan, planned)?;
        let (mut sources, mut commands) = (BTreeSet::new(), Vec::new());
        for index in planned.todo.iter() {
            let task = plan::task(plan, name, index, &run)?;
            for bind in task.binds.iter().filter(|bind| !bind.create && !bind.optional) {
                let appears = made.appears(&bind.source) || bind.source.starts_with(&run);
                if !appears && sources.insert(bind.source.clone()) && !exists(&bind.source)? {
                    let path = bind.source.clone();
                    obstacles.push(Obstacle::Bind { stage: name.clone(), path });
                }
            }
            let start = start(&task);
            if let Some(image) = &image
                && !commands.contains(&start)
            {
                obstacles.extend(in_image(image, name, &task)?);
                commands.push(start);
            }
        }
    }
    Ok(obstacles)
}

/// Where the stages that run put things.
struct Made {
    places: Places,
    folders: BTreeSet<PathBuf>,
}

impl Made {
    fn appears(&self, path: &Path) -> bool {
        path.ancestors().any(|folder| self.folders.contains(folder)) || path.to_str().is_some_and(|text| self.places.meets(text))
    }
}

fn made(plan: &Plan, run: &Path) -> Result<Made, TaskError> {
    let mut made = Made {
        places: Places::default(),
        folders: BTreeSet::new(),
    };
    for (name, planned) in &plan.stages {
        for index in planned.todo.iter() {
            for output in plan::task(plan, name, index, run)?.outputs {
                // Beside a declared output may be what is not declared; but not everything in the workflow's folder.
                let folder = Path::new(crate::binds::fixed_folder(&output)).to_owned();
                if !plan.dir.starts_with(&folder) {
                    made.folders.insert(folder);
                }
                made.places.add(&output);
            }
        }
    }
    Ok(made)
}

fn exists(path: &Path) -> Result<bool, TaskError> {
    path.try_exists().map_err(|source| TaskError::Folder {
        doing: "look at the bind source",
        path: path.to_owned(),
        source,
    })
}

fn image(plan: &Plan, planned: &StagePlan) -> Result<Option<TaskImage>, TaskError> {
    let locked = planned.stage.image.as_ref().and_then(|name| plan.lock.images.get(name));
    match locked {
        // Only looked into: nothing is unpacked.
        Some(locked) if !planned.todo.is_empty() => image::find(locked, ImageAccess::Auto, Path::new("")),
        _ => Ok(None),
    }
}

/// What is started, without its arguments.
fn start(task: &Task) -> Option<String> {
    match &task.command {
        Command::Argv(words) => words.first().map(|word| word.0.clone()),
        Command::App { name, .. } => Some(name.clone()),
        Command::Script(_) | Command::Entrypoint { .. } => None,
    }
}

fn in_image(image: &TaskImage, stage: &StageName, task: &Task) -> Result<Option<Obstacle>, TaskError> {
    let execution = &image.execution;
    let stage = stage.clone();
    let program = match &task.command {
        Command::Argv(words) => words.first().map(|word| word.0.clone()),
        Command::Script(script) => runtime::script(&script.0).into_iter().next(),
        Command::Entrypoint { args } => {
            let args: Vec<String> = args.iter().map(|word| word.0.clone()).collect();
            match runtime::entrypoint(execution, &args) {
                Ok(words) => words.into_iter().next(),
                Err(source) => return Ok(Some(Obstacle::Launch { stage, source })),
            }
        }
        Command::App { name, .. } => match runtime::app(&image.root, name, &[]) {
            Ok(_) => None,
            Err(source @ (AppError::Unknown { .. } | AppError::NoRunscript { .. })) => {
                return Ok(Some(Obstacle::App { stage, source }));
            }
            Err(error) => return Err(error.into()),
        },
    };
    let Some(program) = program else { return Ok(None) };
    let env = runtime::environment(execution, &task.env, Path::new("/"), None);
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, path)| path);
    // What a bind brings along, and what a working directory means, is only seen inside.
    let relative = program.contains('/') && !program.starts_with('/');
    let looked: Vec<&Path> = match program.contains('/') {
        true => vec![Path::new(&program)],
        false => path.split(':').map(Path::new).collect(),
    };
    let bound = |path: &&Path| {
        !path.is_absolute()
            || task
                .binds
                .iter()
                .any(|bind| path.starts_with(&bind.target) || bind.target.starts_with(path))
    };
    if relative || looked.iter().any(bound) {
        return Ok(None);
    }
    let missing = runtime::find_program(&image.root, &program, path).map_err(|source| TaskError::Look {
        image: task.image.clone().unwrap_or_default(),
        source,
    })?;
    Ok(missing.map(|missing| Obstacle::Program { stage, program, missing }))
}
