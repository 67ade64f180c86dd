//! Reading a workflow file for a command: parameters from the command line, mistakes shown in place.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use clap::Args;
use indexmap::IndexMap;
use serde_json::Value;

use super::failure::{Failure, exit};
use crate::workflow::{self, Problem, Workflow};

/// Parameters from outside the file.
#[derive(Args, Clone, Debug, Default)]
pub struct Overrides {
    /// Set a parameter (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Read parameters from a YAML file
    #[arg(long, value_name = "FILE")]
    params: Option<PathBuf>,
    /// What an earlier run had, below both
    #[arg(skip)]
    earlier: IndexMap<String, Value>,
}

impl Overrides {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.params.is_none()
    }

    /// These, and those of an earlier run where they say nothing.
    pub fn over(&self, earlier: IndexMap<String, Value>) -> Overrides {
        Overrides { earlier, ..self.clone() }
    }
}

/// The checked workflow in `file`.
///
/// # Errors
/// Every mistake in the file, each with its place and the line that it is in.
pub fn read(file: &Path, overrides: &Overrides) -> Result<Workflow, Failure> {
    let shown = file;
    // Symbolic links are followed: `.dvrun` and relative paths belong to where the file is.
    let file = fs::canonicalize(file).map_err(|error| {
        Failure::message(exit::USAGE, format!("cannot read {}: {error}", file.display()))
            .hint("name the workflow file: dvrun run pipeline.yaml")
    })?;
    let text = text(&file)?;
    let values = values(overrides)?;
    workflow::check(&text, &file, &values, &|table| fs::read_to_string(table)).map_err(|problems| failure(shown, &text, &problems))
}

fn values(overrides: &Overrides) -> Result<IndexMap<String, Value>, Failure> {
    let mut values = overrides.earlier.clone();
    if let Some(file) = &overrides.params {
        let text = text(file)?;
        values.extend(workflow::params(&text).map_err(|problems| failure(file, &text, &problems))?);
    }
    for set in &overrides.set {
        match set.split_once('=') {
            Some((name, value)) if !name.is_empty() => values.insert(name.to_owned(), workflow::scalar(value)),
            _ => return Err(Failure::message(exit::USAGE, format!("--set takes KEY=VALUE, not `{set}`"))),
        };
    }
    Ok(values)
}

fn text(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|error| Failure::message(exit::USAGE, format!("cannot read {}: {error}", file.display())))
}

/// Each mistake as `file:line:column: message`, then its line.
fn failure(file: &Path, text: &str, problems: &[Problem]) -> Failure {
    let mut report = String::new();
    let renderer = Renderer::plain();
    let name = file.display().to_string();
    for problem in problems {
        if problem.line == 0 {
            writeln!(report, "error: {problem}").unwrap_or_default();
            continue;
        }
        let annotation = AnnotationKind::Primary.span(problem.span.clone());
        let snippet = Snippet::source(text).path(&name).annotation(annotation);
        let mut group = Level::ERROR.primary_title(problem.message.as_str()).element(snippet);
        if let Some(hint) = &problem.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        writeln!(report, "{}\n", renderer.render(&[group])).unwrap_or_default();
    }
    let count = problems.len();
    write!(report, "{name}: {count} {}", if count == 1 { "mistake" } else { "mistakes" }).unwrap_or_default();
    Failure::verbatim(exit::USAGE, report)
}
