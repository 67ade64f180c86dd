//! `dvrun submit FILE`: every stage as dependent SLURM jobs; then dvrun is gone.

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::preparation;
use super::prepare::{self, PATIENCE, Wanted};
use super::settings::Settings;
use super::{show, status};
use crate::engine::slurm::{self, SlurmProfile, Submission};
use crate::engine::{RunStatus, TaskState};
use crate::plan::Plan;
use crate::state::{Mode, RunDir};
use crate::workflow::StageName;

/// Submit a workflow to SLURM and exit
///
/// Images and data are prepared here first, or by the first job (--prepare job). What an earlier run finished is not submitted again; a submission that was
/// cut short is gone on with.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun submit pipeline.yaml\n  dvrun submit pipeline.yaml --set shards=64 --wait\n  dvrun submit pipeline.yaml --profile cluster"
)]
pub struct Arguments {
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    preparation: preparation::Options,
    /// Wait until all jobs have ended; exit with 1 if one failed
    #[arg(long)]
    wait: bool,
    /// What the first jobs wait for besides, as sbatch takes it
    #[arg(long, value_name = "TYPE:ID[:ID…]", value_parser = dependency)]
    dependency: Option<String>,
    /// Print the ids of the last jobs alone, joined by `:`, for another script's --dependency=afterok:IDS
    #[arg(long, conflicts_with = "wait")]
    parsable: bool,
}

/// `afterok:123:124,afterany:125`
fn dependency(text: &str) -> Result<String, String> {
    let is_clause = |clause: &str| {
        clause.split_once(':').is_some_and(|(kind, ids)| {
            let kind = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase());
            kind && ids.bytes().all(|b| b.is_ascii_digit() || b"_+:".contains(&b)) && ids.bytes().any(|b| b.is_ascii_digit())
        })
    };
    match text.split([',', '?']).all(is_clause) {
        true => Ok(text.to_owned()),
        false => Err("write it as sbatch takes it, such as `afterok:123:124`".to_owned()),
    }
}

impl Arguments {
    /// As though typed.
    pub fn new(wanted: Wanted) -> Arguments {
        Arguments {
            wanted,
            preparation: preparation::Options::default(),
            wait: false,
            dependency: None,
            parsable: false,
        }
    }
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let dir = prepare::dir(&arguments.wanted.file)?;
    let lock = prepare::lock(&dir)?;
    let active = prepare::settle(&dir, settings)?.filter(|(_, status)| prepare::is_active(status));
    let (selected, options) = (&arguments.wanted.selected, &arguments.preparation);
    let mut prepared = preparation::plan(&arguments.wanted, options, global, settings)?;
    let run = match active {
        Some((run, status)) if selected.is_everything() && preparation::is_same(&prepared.plan, &run.plan()?) => {
            go_on(&status, global);
            run
        }
        Some((_, status)) => return Err(prepare::active(&status)),
        None => {
            show::planned(&prepared.plan, global);
            if prepared.nothing_to_do() {
                let answer = json!({"run": prepared.latest.as_ref().map(RunDir::id), "submitted": [], "missing": []});
                return show::nothing_to_do(&prepared.plan, prepared.latest.as_ref(), &answer, global);
            }
            preparation::bring(&mut prepared, selected, options, global, settings)?;
            prepare::create(&prepared, Mode::Slurm, settings)?
        }
    };
    let plan = run.plan()?;
    let slurm = settings.slurm();
    let mut profile = profile(settings)?;
    // In the scripts: what a stage needs within the workflow stands on the command line, and goes before it.
    profile
        .args
        .extend(arguments.dependency.iter().map(|dependency| format!("--dependency={dependency}")));
    let submission = slurm::submit(&run, &plan, &profile, &slurm, &settings.program)?;
    if arguments.parsable {
        println!("{}", last_jobs(&plan, &submission).join(":"));
    } else {
        show_submission(&run, &submission, arguments.wait, global);
    }
    complete(submission)?;
    // Waiting keeps nobody from looking at the run, or from cancelling it.
    drop(lock);
    if arguments.wait {
        wait_for(&run, &plan, global, settings)
    } else {
        Ok(exit::DONE)
    }
}

/// The profile, with the limits of its partitions that it leaves to the cluster.
///
/// # Errors
/// A controller that does not answer.
pub fn profile(settings: &Settings) -> Result<SlurmProfile, Failure> {
    slurm::with_limits(&settings.profile.slurm, &settings.slurm()).map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, error.hint()))
}

/// # Errors
/// When not all was submitted, with what stopped it.
pub fn complete(submission: Submission) -> Result<(), Failure> {
    if let Some(stopped) = submission.stopped {
        let queued = submission.stages.iter().any(|stage| !stage.jobs.is_empty());
        let hint = stopped.hint();
        return Err(Failure::new(
            if queued { exit::PARTIAL } else { exit::INFRASTRUCTURE },
            &stopped,
            hint,
        ));
    }
    if let Some((stage, why)) = submission.missing.first() {
        return Err(Failure::message(exit::PARTIAL, format!("stage {stage} is not submitted: {why}")).hint("see `dvrun status`"));
    }
    Ok(())
}

/// The jobs that no other stage of the submission waits for.
fn last_jobs<'a>(plan: &Plan, submission: &'a Submission) -> Vec<&'a str> {
    let submitted = || submission.stages.iter().map(|stage| &stage.stage);
    let needed = |name: &StageName| submitted().any(|other| plan.stages[other].stage.needs.iter().any(|need| need.stage == *name));
    let last = submission.stages.iter().filter(|stage| !needed(&stage.stage));
    last.flat_map(|stage| stage.jobs.iter().map(String::as_str)).collect()
}

fn go_on(status: &RunStatus, global: &Global) {
    if !global.quiet && !global.json {
        eprintln!("run {} is active; going on with what is not submitted yet", status.run);
    }
}

/// What was submitted, and what was not.
pub fn show_submission(run: &RunDir, submission: &Submission, wait: bool, global: &Global) {
    if global.json && !wait {
        let stages: Vec<_> = submission
            .stages
            .iter()
            .map(|stage| json!({"stage": stage.stage, "jobs": stage.jobs, "tasks": stage.tasks, "new": stage.new}))
            .collect();
        let missing: Vec<_> = submission.missing.iter().map(|(stage, _)| stage).collect();
        println!("{:#}", json!({"run": run.id(), "submitted": stages, "missing": missing}));
    }
    if global.quiet || global.json {
        return;
    }
    let width = submission.stages.iter().map(|stage| stage.stage.0.len()).max().unwrap_or(0);
    for stage in &submission.stages {
        let earlier = if stage.new == 0 { " (submitted earlier)" } else { "" };
        eprintln!(
            "  {:width$}  job {}, {} tasks{earlier}",
            stage.stage.0,
            stage.jobs.join(" "),
            stage.tasks
        );
    }
    for (stage, missing) in &submission.missing {
        eprintln!("  {:width$}  not submitted: {missing}", stage.0);
    }
    eprintln!("run {}; see `dvrun status`", run.id());
}

/// Sees a run to its end, says how it goes, and gives the exit code that stands for how it ended.
pub fn wait_for(run: &RunDir, plan: &Plan, global: &Global, settings: &Settings) -> Outcome {
    let mut last = String::new();
    let mut see = |status: &RunStatus| {
        let line = progress(status);
        if !global.quiet && !global.json && line != last {
            eprintln!("  {line}");
            last = line;
        }
    };
    let slurm = settings.slurm();
    let mut ended = slurm::wait(run, plan, &slurm, &mut see)?;
    if !ended.stuck.is_empty() {
        slurm::sweep(run, plan, &slurm, PATIENCE)?;
        ended = crate::engine::status(run, plan, Some(&slurm))?;
    }
    status::print(&ended, plan, global)?;
    // Whoever waits goes on when this says that all went well: a lost or a cancelled job did not.
    let lost = [TaskState::Cancelled, TaskState::Unknown];
    let short = ended
        .stages
        .values()
        .any(|stage| lost.iter().any(|state| stage.counts.contains_key(state)));
    Ok(if short { exit::FAILED } else { status::code(&ended) })
}

/// `prepare ok · call 3/4 ok, 1 running`: the stages that have begun.
fn progress(status: &RunStatus) -> String {
    let begun = status.stages.iter().filter(|(_, stage)| {
        stage
            .counts
            .keys()
            .any(|state| !matches!(state, TaskState::Waiting | TaskState::NotSelected))
    });
    let parts = begun.map(|(name, stage)| format!("{name} {}", status::counts(stage)));
    parts.collect::<Vec<_>>().join(" · ")
}
