//! `dvrun efficiency [RUN]`: what was asked for, what was used, and what would have been enough.

use std::fs;

use clap::Args;
use serde_json::json;
use similar::TextDiff;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::file::{self, Overrides};
use super::select::find_run;
use super::show;
use crate::engine::{self, StageUse};
use crate::plan::Plan;
use crate::workflow::units::{Bytes, Seconds};
use crate::workflow::{self, Resources, Wanted, Workflow};

/// Compare what stages ask for with what their tasks used
///
/// Peak memory is that of a task's largest process.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun efficiency\n  dvrun efficiency --patch | git apply\n  dvrun efficiency --json | jq '.[] | {stage, memory}'"
)]
pub struct Arguments {
    /// The run (its id or the end of it); the newest otherwise
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Print what would be enough as a patch of the workflow file, for `git apply` or `patch -p1`
    #[arg(long)]
    patch: bool,
}

pub fn run(arguments: &Arguments, global: &Global) -> Outcome {
    let run = find_run(arguments.run.as_deref())?;
    let plan = run.plan()?;
    let uses = engine::efficiency(&run, &plan)?;
    if arguments.patch {
        return patch(&plan, &uses, global);
    }
    if global.json {
        println!("{:#}", json!(uses));
        return Ok(exit::DONE);
    }
    let width = uses.iter().map(|used| used.stage.0.len()).max().unwrap_or(0).max(5);
    println!(
        "{:width$}  {:>6}  {:>22}  {:>16}  {:>22}",
        "stage", "tasks", "memory used of", "cpus used of", "longest of"
    );
    for used in &uses {
        let of = |used: String, asked: Option<String>| format!("{used} of {}", asked.unwrap_or_else(|| "-".to_owned()));
        println!(
            "{:width$}  {:>6}  {:>22}  {:>16}  {:>22}",
            used.stage.0,
            used.tasks,
            of(
                Bytes(used.memory_max).to_string(),
                used.asked.memory.map(|memory| memory.to_string())
            ),
            of(
                format!("{:.1}", used.cpu_share() * f64::from(used.asked.cpus)),
                Some(used.asked.cpus.to_string())
            ),
            of(
                Seconds(used.wall_max.div_ceil(1000)).to_string(),
                used.asked.time.map(|time| time.to_string())
            ),
        );
    }
    for used in &uses {
        if let Some(enough) = enough(used) {
            println!("{}: {enough} would be enough", used.stage);
        }
    }
    Ok(exit::DONE)
}

/// As the workflow file has it.
fn enough(used: &StageUse) -> Option<String> {
    let fields = fields(used);
    let parts: Vec<String> = fields.into_iter().map(|(field, value)| format!("{field}: {value}")).collect();
    (!parts.is_empty()).then(|| format!("resources: {{{}}}", parts.join(", ")))
}

/// What would be enough, as keys and values of the workflow file.
fn fields(used: &StageUse) -> Vec<(&'static str, String)> {
    let fields = [
        used.cpus.map(|cpus| ("cpus", cpus.to_string())),
        used.memory.map(|memory| ("memory", format!("{}M", memory.mebibytes()))),
        used.time.map(|time| ("time", format!("{}m", time.0.div_ceil(60)))),
    ];
    fields.into_iter().flatten().collect()
}

/// The workflow file as it is now, with what would be enough in the place of what is asked for.
fn patch(plan: &Plan, uses: &[StageUse], global: &Global) -> Outcome {
    let path = show::relative(&plan.file);
    let overrides = Overrides::default().over(plan.params.clone());
    let now = file::read(&plan.file, &overrides)?;
    let text = fs::read_to_string(&plan.file)
        .map_err(|error| Failure::message(exit::USAGE, format!("cannot read {}: {error}", path.display())))?;
    let (mut wanted, mut notes) = (Vec::new(), Vec::new());
    for used in uses {
        let fields = fields(used);
        let asked = |workflow: &Workflow| workflow.stages.get(&used.stage).map(|stage| amounts(&stage.resources));
        if fields.is_empty() {
            continue;
        }
        if asked(&now) == Some(amounts(&used.asked)) {
            wanted.push(Wanted {
                stage: used.stage.clone(),
                fields,
            });
        } else {
            notes.push(format!(
                "stage `{}` is left: the file does not ask for what the run had",
                used.stage
            ));
        }
    }
    let cannot = || Failure::message(exit::FAILED, format!("cannot tell how to change {}", path.display()));
    let edited = workflow::edit_resources(&text, &wanted).map_err(|_| cannot())?;
    notes.extend(edited.left);
    // What comes out has to be what was meant, however the file is written.
    let checked = workflow::check(&edited.text, &plan.file, &plan.params, &|table| fs::read_to_string(table));
    if !checked.is_ok_and(|checked| checked.stages.keys().eq(now.stages.keys())) {
        return Err(cannot());
    }
    // A patch names no file by its whole path.
    let name = match path.is_relative() {
        true => path.display().to_string(),
        false => {
            notes.push(format!("the patch is for the folder {}", plan.dir.display()));
            path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
    };
    let diff = TextDiff::from_lines(&text, &edited.text);
    let patch = diff.unified_diff().header(&format!("a/{name}"), &format!("b/{name}")).to_string();
    if global.json {
        println!("{}", json!({"patch": patch, "notes": notes}));
        return Ok(exit::DONE);
    }
    if !global.quiet {
        notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
    print!("{patch}");
    Ok(exit::DONE)
}

/// What a patch may change.
fn amounts(resources: &Resources) -> (u32, Option<Bytes>, Option<Seconds>) {
    (resources.cpus, resources.memory, resources.time)
}
