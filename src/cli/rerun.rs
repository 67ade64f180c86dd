//! `dvrun rerun STAGE[/INDICES]`: some tasks of the newest run again, and what waits for them after them.

use clap::Args;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::file::Overrides;
use super::prepare::{self, Selected, Wanted};
use super::select::{Target, Tasks, find_run};
use super::settings::Settings;
use super::{machine, run, show, submit};
use crate::engine::rerun::{self, Changes, Chosen, Reach, Request};
use crate::engine::slurm::{self, SlurmRerunError};
use crate::plan::{Plan, TaskSet};
use crate::state::{Mode, RunDir};
use crate::workflow::units::{Bytes, Seconds};

/// Run a stage, or some of its tasks, again
///
/// Their outputs are removed and they run as part of the newest run, where that ran: on this machine or on SLURM. What
/// needs them and did not end well follows; jobs that wait in the queue are made to wait for the new ones. With --set or
/// --params a new run begins, in which the stage and all that needs it run again.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun rerun call\n  dvrun rerun call/failed --memory 32G\n  dvrun rerun call/3,7-9 --time 12h --only\n  dvrun rerun call --set region=chr21"
)]
pub struct Arguments {
    /// The stage; tasks of it as INDEX, FIRST-LAST, a list of these, or `failed`
    #[arg(value_name = "STAGE[/INDICES]")]
    target: Target,
    #[command(flatten)]
    overrides: Overrides,
    /// All that needs these tasks runs again too, though it is done
    #[arg(long, conflicts_with = "only")]
    downstream: bool,
    /// Nothing that needs these tasks runs
    #[arg(long)]
    only: bool,
    /// The stage's memory from now on
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// The stage's time limit from now on
    #[arg(long, value_name = "TIME")]
    time: Option<Seconds>,
    /// The stage's cpus from now on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
}

impl Arguments {
    fn reach(&self) -> Reach {
        match (self.only, self.downstream) {
            (true, _) => Reach::Only,
            (false, true) => Reach::Downstream,
            (false, false) => Reach::Unfinished,
        }
    }
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let newest = find_run(None)?;
    let mode = newest.info()?.mode;
    let mut plan = newest.plan()?;
    let stage = arguments.target.stage.in_plan(&plan)?;
    if !arguments.overrides.is_empty() {
        return anew(arguments, &plan, mode, global, settings);
    }
    let _lock = prepare::lock(&plan.dir)?;
    let all = TaskSet::all(plan.stages[&stage].stage.tasks());
    let tasks = match &arguments.target.tasks {
        Tasks::All => all,
        Tasks::Failed => all.difference(&rerun::ended_well(&newest, &plan, &stage)?),
        Tasks::These(tasks) => tasks.clone(),
    };
    if tasks.is_empty() {
        if !global.quiet {
            eprintln!("every task of {stage} ended well; nothing to run");
        }
        return Ok(exit::DONE);
    }
    let request = Request {
        stage,
        tasks,
        reach: arguments.reach(),
        changes: Changes {
            cpus: arguments.cpus,
            memory: arguments.memory,
            time: arguments.time,
        },
    };
    match mode {
        Mode::Local => here(&newest, &mut plan, &request, global, settings),
        Mode::Slurm => on_slurm(&newest, &mut plan, &request, global, settings),
    }
}

/// Other parameters make another plan, and so another run.
fn anew(arguments: &Arguments, plan: &Plan, mode: Mode, global: &Global, settings: &Settings) -> Outcome {
    let changes = arguments.memory.is_some() || arguments.time.is_some() || arguments.cpus.is_some();
    if arguments.target.tasks != Tasks::All || changes {
        return Err(Failure::message(
            exit::USAGE,
            "with --set or --params a whole stage runs again, with the resources that the workflow file gives it",
        ));
    }
    let overrides = arguments.overrides.over(plan.params.clone());
    let selected = Selected::again(&arguments.target.stage.in_plan(plan)?, arguments.reach());
    let wanted = Wanted {
        file: plan.file.clone(),
        overrides,
        selected,
    };
    match mode {
        Mode::Local => run::run(&run::Arguments::new(wanted), global, settings),
        Mode::Slurm => submit::run(&submit::Arguments::new(wanted), global, settings),
    }
}

fn here(newest: &RunDir, plan: &mut Plan, request: &Request, global: &Global, settings: &Settings) -> Outcome {
    let chosen = rerun::choose(newest, plan, request)?;
    rerun::change(plan, request);
    let narrowed = rerun::narrowed(plan, &chosen);
    let nodes = machine::nodes(None, settings)?;
    nodes.fits(&narrowed)?;
    rerun::reset(newest, plan, &chosen)?;
    tell(plan, &chosen, global);
    outdated(newest, plan, request, global)?;
    run::drive(newest, &narrowed, &nodes, global, settings)
}

fn on_slurm(newest: &RunDir, plan: &mut Plan, request: &Request, global: &Global, settings: &Settings) -> Outcome {
    let slurm = settings.slurm();
    let done =
        slurm::rerun(newest, plan, request, &submit::profile(settings)?, &slurm, &settings.program).map_err(|error| match error {
            SlurmRerunError::Choose(error) => Failure::from(error),
            error => Failure::from(error),
        })?;
    tell(plan, &done.chosen, global);
    outdated(newest, plan, request, global)?;
    submit::show_submission(newest, &done.submission, false, global);
    if !done.repointed.is_empty() && !global.quiet && !global.json {
        eprintln!("jobs {} wait for the new ones now", done.repointed.join(" "));
    }
    if let Some((job, error)) = done.left.into_iter().next() {
        let hint = format!("cancel it and run its stage again: `scancel {job}`");
        return Err(Failure::new(exit::PARTIAL, &error, Some(hint)));
    }
    submit::complete(done.submission)?;
    Ok(exit::DONE)
}

fn tell(plan: &Plan, chosen: &Chosen, global: &Global) {
    if global.quiet || global.json {
        return;
    }
    for (name, tasks) in chosen {
        let which = show::target(plan, name, tasks);
        eprintln!("  {which} runs again");
    }
}

/// Stages that are done with what the tasks had written before.
fn outdated(newest: &RunDir, plan: &Plan, request: &Request, global: &Global) -> Result<(), Failure> {
    if request.reach == Reach::Downstream || global.quiet {
        return Ok(());
    }
    let mut outdated = Vec::new();
    for (name, planned) in &plan.stages {
        let needs = planned.stage.needs.iter().any(|need| need.stage == request.stage);
        if needs && !rerun::ended_well(newest, plan, name)?.is_empty() {
            outdated.push(name.0.as_str());
        }
    }
    if !outdated.is_empty() {
        eprintln!(
            "note: {} used the earlier outputs; `dvrun rerun {} --downstream` runs that again too",
            outdated.join(", "),
            show::target(plan, &request.stage, &request.tasks)
        );
    }
    Ok(())
}
