//! A task in a process apart, `dvrun __task`: on another node of an allocation, or here, where it is held to limits that a
//! process has and a thread has not ([`super::group`]).

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::place::{Place, Runtime};
use super::slurm::Step;
use super::task::Numbered;
use super::watch::Watch;
use crate::runtime::Invocation;
use crate::workflow::units::Bytes;
use crate::workflow::{Stage, StageName};

/// Where that process is.
#[derive(Clone, Debug)]
pub(super) enum Apart {
    Here,
    Node {
        step: Arc<Step>,
        /// What Slurm holds it to there.
        memory: Option<Bytes>,
    },
}

impl Apart {
    /// Where a task of `stage` that has taken `memory` runs, if not on a thread of this process.
    pub fn of(stage: &Stage, step: Option<Arc<Step>>, memory: Option<Bytes>) -> Option<Apart> {
        match step {
            Some(step) => Some(Apart::Node { step, memory }),
            None => stage.resources.memory.is_some().then_some(Apart::Here),
        }
    }

    pub fn watch(&self) -> Watch {
        match self {
            Apart::Here => Watch::of_task(),
            Apart::Node { .. } => Watch::of_step(),
        }
    }

    pub fn host<'a>(&'a self, place: &'a Place) -> &'a str {
        match self {
            Apart::Here => &place.host,
            Apart::Node { step, .. } => &step.node,
        }
    }

    /// Its standard input; `None`: an empty one.
    pub fn stdin(&self) -> Option<&File> {
        match self {
            Apart::Here => None,
            Apart::Node { step, .. } => Some(&step.lifeline.stdin),
        }
    }

    /// The command that starts a task. `gpus` are variables that choose its own.
    pub fn call(&self, run: &Path, stage: &StageName, task: Numbered, place: &Place, gpus: &[(String, String)]) -> Invocation {
        let (mut argv, mut env) = match self {
            Apart::Node { step, memory } => (step.argv(*memory), step.env()),
            Apart::Here => {
                let mut argv = vec![text(&place.exe)];
                argv.extend(place.program.options.iter().cloned());
                (argv, place.whole_env.clone())
            }
        };
        env.retain(|(name, _)| !gpus.iter().any(|(own, _)| own == name));
        env.extend(gpus.iter().cloned());
        argv.extend(["__task".to_owned(), text(run), stage.0.clone(), task.index.to_string()]);
        argv.extend(["--attempt".to_owned(), task.attempt.to_string()]);
        argv.extend(["--scratch".to_owned(), text(&place.scratch)]);
        if let Runtime::Apptainer(_) = place.runtime {
            argv.extend(["--runtime", "apptainer"].map(str::to_owned));
        }
        if let Apart::Node { .. } = self {
            argv.push("--step".to_owned());
        }
        Invocation { argv, env }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
