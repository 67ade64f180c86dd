//! Job scripts to be submitted by hand, or by other scripts, and the script that submits them all.
//!
//! Each has a token, and the journal the intent: whoever looks later finds the jobs by it, and a `submit` that finds none
//! submits them itself, after which a script that comes late ends without doing anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::journal::{Intent, SubmittedJob};
use super::noted::Noted;
use super::parents::{Dependency, Parent, dependency};
use super::profile::SlurmProfile;
use super::sbatch::intent;
use super::script::{Limits, Program, job_name, scripts, shell_word};
use super::submit::SubmitError;
use crate::plan::Plan;
use crate::state::{Event, RunDir};

/// Writes a script for each job of `run` into `folder`, and `submit.sh`, which submits them in order; gives their paths,
/// `submit.sh` last.
///
/// # Errors
/// What cannot be written, or does not fit into a script.
pub fn by_hand(
    run: &RunDir,
    plan: &Plan,
    profile: &SlurmProfile,
    program: &Program,
    limits: Limits,
    folder: &Path,
) -> Result<Vec<PathBuf>, SubmitError> {
    let write = |path: &Path, text: &str| {
        fs::write(path, text).map_err(|source| SubmitError::Write {
            path: path.to_owned(),
            source,
        })
    };
    let made = |path: &Path| {
        fs::create_dir_all(path).map_err(|source| SubmitError::Write {
            path: path.to_owned(),
            source,
        })
    };
    made(folder)?;
    let mut journal = Noted::new(run.journal()?);
    let mut written = Vec::new();
    let mut parents: BTreeMap<_, Parent> = BTreeMap::new();
    let mut all = String::from(
        "#!/bin/sh\n# Submits these jobs as `dvrun submit` would, each once the ones that it needs are known.\nset -eu\ncd \"$(dirname \"$0\")\"\n",
    );
    for (name, stage) in plan.stages.iter() {
        if stage.todo.is_empty() {
            parents.insert(name.clone(), Parent::Done);
            continue;
        }
        made(&run.logs(name))?;
        let unwritable = |source| SubmitError::Script {
            stage: name.clone(),
            source,
        };
        let scripts = scripts(run, plan, stage, &stage.todo, profile, program, limits).map_err(unwritable)?;
        let mut jobs: Vec<SubmittedJob> = Vec::new();
        let limited = stage.stage.array.as_ref().is_some_and(|array| array.max_parallel.is_some());
        for script in scripts {
            let intent = intent(&script);
            journal.intend([&intent])?;
            let job_name = job_name(plan, name);
            let named = format!(
                "#SBATCH --job-name={job_name}.{token}\n#SBATCH --comment=dvrun:{token}\n",
                token = intent.token
            );
            let text = script.text.replacen(&format!("#SBATCH --job-name={job_name}\n"), &named, 1);
            let file = script.path.file_name().and_then(|file| file.to_str()).unwrap_or(&name.0);
            let path = folder.join(file);
            write(&path, &text)?;
            let mut clauses = match dependency(stage, &parents) {
                Dependency::Jobs(needed) => needed.iter().filter_map(|need| need.clause(&script.chunk)).collect(),
                Dependency::Missing(_) => Vec::new(),
            };
            if let (true, Some(before)) = (limited, jobs.last()) {
                clauses.push(format!("afterany:{}", before.job));
            }
            let option = match clauses.is_empty() {
                true => String::new(),
                false => format!(" --dependency=\"{}\"", clauses.join(",")),
            };
            // In clauses the shell puts the id where the variable stands. Some sites give `ID;CLUSTER`.
            let variable = format!("job{}", written.len());
            let file = shell_word("path", file).map_err(unwritable)?;
            all += &format!(
                "{variable}=$(sbatch --parsable{option} {file} | tail -n 1)\n{variable}=${{{variable}%%;*}}\necho \"{name} ${variable}\"\n"
            );
            jobs.push(SubmittedJob {
                intent,
                job: format!("${{{variable}}}"),
                partial: false,
            });
            written.push(path);
        }
        parents.insert(name.clone(), Parent::Queued(jobs));
    }
    let path = folder.join("submit.sh");
    write(&path, &all)?;
    written.push(path);
    Ok(written)
}

impl Intent {
    /// As the journal has it.
    pub fn event(&self) -> Event {
        Event::Submitting {
            token: self.token.clone(),
            stage: self.stage.clone(),
            tasks: self.tasks.clone(),
            offset: self.offset,
        }
    }
}
