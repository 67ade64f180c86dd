//! `dvrun plan FILE`: what would run, and why; with `--scripts`, the sbatch scripts.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::preparation;
use super::prepare::{self, Wanted};
use super::settings::Settings;
use super::show;
use crate::engine::slurm::{self, Limits, Script};
use crate::plan::{self, Plan};
use crate::state::{Mode, RunDir};

/// Show what would run, and why, without running it
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun plan pipeline.yaml\n  dvrun plan pipeline.yaml --scripts\n  dvrun plan pipeline.yaml --json | jq .stages"
)]
pub struct Arguments {
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    preparation: preparation::Options,
    /// Print the sbatch scripts that `submit` would submit
    #[arg(long)]
    scripts: bool,
    /// Write the scripts into this folder, with one that submits them all, for submission by hand
    ///
    /// Images and data are prepared, and a run begins that the jobs belong to.
    #[arg(long, short, value_name = "DIR", requires = "scripts")]
    output: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    if let Some(folder) = &arguments.output {
        return by_hand(arguments, folder, global, settings);
    }
    let mut prepared = prepare::preview(&arguments.wanted, global, settings)?;
    if arguments.scripts {
        preparation::leave(&mut prepared, &arguments.wanted.selected, &arguments.preparation, settings)?;
    }
    let plan = &prepared.plan;
    let scripts = if arguments.scripts { scripts(plan, settings)? } else { Vec::new() };
    if global.json {
        let stages: Vec<_> = plan::summary(plan).into_iter().map(|stage| json!(stage)).collect();
        let scripts: Vec<_> = scripts
            .iter()
            .map(|script| json!({"stage": script.stage, "script": script.text}))
            .collect();
        println!(
            "{:#}",
            json!({"name": plan.name, "file": plan.file, "stages": stages, "images": plan.lock.images, "scripts": scripts})
        );
        return Ok(exit::DONE);
    }
    if arguments.scripts {
        for script in &scripts {
            println!("{}", script.text);
        }
    } else {
        print!("{}", show::plan(plan));
    }
    Ok(exit::DONE)
}

/// A run whose jobs somebody else submits.
fn by_hand(arguments: &Arguments, folder: &Path, global: &Global, settings: &Settings) -> Outcome {
    let dir = prepare::dir(&arguments.wanted.file)?;
    let _lock = prepare::lock(&dir)?;
    if let Some((_, status)) = prepare::settle(&dir, settings)?.filter(|(_, status)| prepare::is_active(status)) {
        return Err(prepare::active(&status));
    }
    let (selected, options) = (&arguments.wanted.selected, &arguments.preparation);
    let mut prepared = preparation::plan(&arguments.wanted, options, global, settings)?;
    if prepared.nothing_to_do() {
        let answer = json!({"run": prepared.latest.as_ref().map(RunDir::id), "written": []});
        return show::nothing_to_do(&prepared.plan, prepared.latest.as_ref(), &answer, global);
    }
    preparation::bring(&mut prepared, selected, options, global, settings)?;
    let run = prepare::create(&prepared, Mode::Slurm, settings)?;
    // Where there is no cluster at hand, as on the machine where scripts are only read.
    let limits = slurm::limits(&settings.slurm()).unwrap_or_default();
    let profile = slurm::with_limits(&settings.profile.slurm, &settings.slurm()).unwrap_or_else(|_| settings.profile.slurm.clone());
    let written = slurm::by_hand(&run, &prepared.plan, &profile, &settings.program, limits, folder)?;
    if global.json {
        println!("{:#}", json!({"run": run.id(), "written": written}));
    } else {
        for path in &written {
            println!("{}", path.display());
        }
    }
    Ok(exit::DONE)
}

/// As `submit` would write them into a run folder, which is not made.
fn scripts(plan: &Plan, settings: &Settings) -> Result<Vec<Script>, Failure> {
    let run = RunDir::at(RunDir::all(&plan.dir).join("RUN"));
    let mut scripts = Vec::new();
    for stage in plan.stages.values().filter(|stage| !stage.todo.is_empty()) {
        scripts.extend(slurm::scripts(
            &run,
            plan,
            stage,
            &stage.todo,
            &settings.profile.slurm,
            &settings.program,
            Limits::default(),
        )?);
    }
    Ok(scripts)
}
