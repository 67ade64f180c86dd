//! `dvrun runs`: all runs of a workflow.

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Outcome, exit};
use super::select::workflow_dir;
use super::settings::Settings;
use super::{show, status};
use crate::engine;
use crate::state::{Mode, RunDir};

/// List the runs of the workflow, newest last
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun runs\n  dvrun status 142530-123")]
pub struct Arguments {}

pub fn run(_: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let slurm = settings.slurm();
    let mut rows = Vec::new();
    for run in RunDir::list(&workflow_dir()?)? {
        let (info, plan) = (run.info()?, run.plan()?);
        let status = engine::status(&run, &plan, Some(&slurm))?;
        let todo: u64 = plan.stages.values().map(|stage| u64::from(stage.todo.len())).sum();
        let place = match info.mode {
            Mode::Local => "local",
            Mode::Slurm => "slurm",
        };
        if global.json {
            rows.push(json!({
                "run": run.id(), "mode": place, "state": status.state, "created": info.created, "user": info.user, "host": info.host,
                "tasks": todo,
            }));
        } else {
            println!(
                "{}  {:<10} {place}  {:>7} tasks  {} by {} on {}",
                run.id(),
                status::state_of(status.state),
                todo,
                show::moment(info.created),
                info.user,
                info.host
            );
        }
    }
    if global.json {
        println!("{:#}", json!(rows));
    }
    Ok(exit::DONE)
}
