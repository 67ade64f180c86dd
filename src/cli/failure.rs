//! Errors as a user sees them: `error: …`, `caused by: …`, `hint: …`, and an exit code.

use std::error::Error;
use std::fmt::Write as _;

use crate::engine::rerun::RerunError;
use crate::runtime::{LookError, RuntimeError};

/// The exit codes of `dvrun`, the same for every command. `exec`, `run-app` and `shell` give the program's own.
pub mod exit {
    /// All that was asked is done.
    pub const DONE: u8 = 0;
    /// A stage failed, or the program in a container.
    pub const FAILED: u8 = 1;
    /// The command line, or the workflow file, is wrong.
    pub const USAGE: u8 = 2;
    /// Network, registry, Slurm, disk, this host.
    pub const INFRASTRUCTURE: u8 = 3;
    /// Not all that was asked could be submitted.
    pub const PARTIAL: u8 = 4;
    /// The program in a container cannot be executed, as shells say it.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// There is no such program in a container.
    pub const NOT_FOUND: u8 = 127;
    /// Interrupted (Ctrl-C, SIGTERM).
    pub const INTERRUPTED: u8 = 130;
}

/// What a command gives back when it cannot do what it was asked.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    text: String,
}

/// A command's end: an exit code, or a failure to print.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// `error` with all its causes, and what to do next.
    pub fn new(code: u8, error: &dyn Error, hint: Option<String>) -> Failure {
        let mut text = format!("error: {error}");
        let mut cause = error.source();
        let mut last = error.to_string();
        while let Some(error) = cause {
            let line = error.to_string();
            // Wrappers that only repeat what they wrap add nothing.
            if !last.ends_with(&line) {
                write!(text, "\n  caused by: {line}").unwrap_or_default();
            }
            last = line;
            cause = error.source();
        }
        if let Some(hint) = hint {
            write!(text, "\n  hint: {hint}").unwrap_or_default();
        }
        Failure { code, text }
    }

    /// Several at once, each with its hint.
    pub fn all<'a>(code: u8, errors: impl Iterator<Item = (&'a dyn Error, Option<String>)>) -> Failure {
        let texts: Vec<String> = errors.map(|(error, hint)| Failure::new(code, error, hint).text).collect();
        Failure {
            code,
            text: texts.join("\n"),
        }
    }

    /// A failure that is no library error.
    pub fn message(code: u8, text: impl std::fmt::Display) -> Failure {
        Failure {
            code,
            text: format!("error: {text}"),
        }
    }

    /// With a next step for the user.
    pub fn hint(mut self, hint: impl std::fmt::Display) -> Failure {
        write!(self.text, "\n  hint: {hint}").unwrap_or_default();
        self
    }

    /// Whole text as given, for diagnostics that are already laid out.
    pub fn verbatim(code: u8, text: String) -> Failure {
        Failure { code, text }
    }

    pub fn code(&self) -> u8 {
        self.code
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Failure {
        let code = match &error {
            RuntimeError::ProgramNotFound { .. } => exit::NOT_FOUND,
            RuntimeError::NotExecutable { .. } => exit::NOT_EXECUTABLE,
            RuntimeError::WorkingDir { .. } | RuntimeError::BindSourceMissing { .. } | RuntimeError::Invalid { .. } => exit::USAGE,
            _ => exit::INFRASTRUCTURE,
        };
        let hint = error.hint();
        Failure::new(code, &error, hint)
    }
}

impl From<RerunError> for Failure {
    fn from(error: RerunError) -> Failure {
        let code = match &error {
            RerunError::Records { .. } | RerunError::Reset(_) => exit::INFRASTRUCTURE,
            RerunError::NoSuchTask { .. } | RerunError::NotReady { .. } | RerunError::Active { .. } => exit::USAGE,
        };
        let hint = error.hint();
        Failure::new(code, &error, hint)
    }
}

impl From<LookError> for Failure {
    fn from(error: LookError) -> Failure {
        Failure::message(exit::INFRASTRUCTURE, format!("cannot look into the image: {error}"))
    }
}

/// Every library error becomes a failure with a code of its own; those with a `hint()` give it.
macro_rules! failures {
    ($($error:ty => $code:expr),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                let hint = error.hint();
                Failure::new($code, &error, hint)
            }
        }
    )*};
}

failures! {
    crate::engine::StatusError => exit::INFRASTRUCTURE,
    crate::engine::local::LocalError => exit::INFRASTRUCTURE,
    crate::engine::slurm::CancelError => exit::INFRASTRUCTURE,
    crate::engine::slurm::ScriptError => exit::USAGE,
    crate::engine::slurm::SlurmRerunError => exit::INFRASTRUCTURE,
    crate::engine::slurm::SubmitError => exit::INFRASTRUCTURE,
    crate::engine::task::TaskError => exit::INFRASTRUCTURE,
    crate::fetch::FetchError => exit::INFRASTRUCTURE,
    crate::fetch::PullError => exit::INFRASTRUCTURE,
    crate::image::ImageError => exit::INFRASTRUCTURE,
    crate::net::NetError => exit::INFRASTRUCTURE,
    crate::plan::PlanError => exit::USAGE,
    crate::registry::RegistryError => exit::INFRASTRUCTURE,
    crate::runtime::AppError => exit::USAGE,
    crate::runtime::GpuError => exit::INFRASTRUCTURE,
    crate::runtime::LaunchError => exit::USAGE,
    crate::state::StateError => exit::INFRASTRUCTURE,
    crate::sif::SifError => exit::USAGE,
    crate::squashfs::SquashfsError => exit::USAGE,
    crate::store::StoreError => exit::INFRASTRUCTURE,
}
