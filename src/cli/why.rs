//! `dvrun why STAGE`: what makes a stage run, or not.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Outcome, exit};
use super::file::Overrides;
use super::prepare::{self, Selected, Wanted};
use super::select::{Selection, find_run};
use super::settings::Settings;
use super::show;
use crate::plan::{self, Plan, Reason};
use crate::workflow::StageName;

/// Tell why a stage would run now: which part of what it is made of changed
///
/// Compares the workflow file as it is now with the newest run.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun why call\n  dvrun why call --set shards=8")]
pub struct Arguments {
    #[arg(value_name = "STAGE")]
    stage: Selection,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    selected: Selected,
}

/// A part of a stage's identity, before and now.
type Change = (String, Option<String>, Option<String>);

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let before = find_run(None)?.plan()?;
    let wanted = Wanted {
        file: before.file.clone(),
        overrides: arguments.overrides.clone(),
        selected: arguments.selected.clone(),
    };
    let now = prepare::plan(&wanted, global, settings)?.plan;
    let stage = arguments.stage.in_plan(&now)?;
    if global.json {
        let changes = changes(&before, &now, &stage);
        println!(
            "{:#}",
            json!({"stage": stage, "todo": now.stages[&stage].todo, "reason": now.stages[&stage].reason, "changes": changes})
        );
        return Ok(exit::DONE);
    }
    let summaries = plan::summary(&now);
    let mut text = String::new();
    let mut next = Some(&stage);
    let mut told = BTreeSet::new();
    // From the stage to what makes it run, and on to the root of it.
    while let Some(name) = next.filter(|name| told.insert((*name).clone())) {
        next = None;
        let reason = summaries
            .iter()
            .find(|summary| summary.name == *name)
            .map_or("", |summary| &summary.reason);
        let verb = if now.stages[name].todo.is_empty() { "does not run" } else { "runs" };
        writeln!(text, "{name} {verb}: {reason}").unwrap_or_default();
        let todo = &now.stages[name].todo;
        if !todo.is_empty() && todo.len() < now.stages[name].stage.tasks() {
            writeln!(text, "  {:<20} {}", "tasks", show::some_of(todo)).unwrap_or_default();
        }
        // What a needed stage became is told where that one is told of.
        let told_elsewhere = |part: &str| part.strip_prefix("needs.").is_some_and(|need| runs(&now, need));
        for (part, before, now) in changes(&before, &now, name).into_iter().filter(|(part, ..)| !told_elsewhere(part)) {
            let words = match (before, now) {
                (Some(before), Some(now)) => format!("{before} → {now}"),
                (None, Some(now)) => format!("{now} is new"),
                (before, None) => format!("{} is gone", before.unwrap_or_default()),
            };
            writeln!(text, "  {part:<20} {words}").unwrap_or_default();
        }
        if let Reason::ParentRuns(parent) = &now.stages[name].reason {
            next = now.stages.get_key_value(parent).map(|(parent, _)| parent);
        }
    }
    print!("{text}");
    Ok(exit::DONE)
}

fn runs(plan: &Plan, stage: &str) -> bool {
    (plan.stages.get(&StageName(stage.to_owned()))).is_some_and(|planned| !planned.todo.is_empty())
}

/// The parts that differ; none where the earlier run did not write them down.
fn changes(before: &Plan, now: &Plan, stage: &StageName) -> Vec<Change> {
    let Some(old) = before.stages.get(stage).map(|stage| &stage.parts).filter(|parts| !parts.is_empty()) else {
        return Vec::new();
    };
    let new = &now.stages[stage].parts;
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    (names.into_iter())
        .map(|name| (name.clone(), old.get(name).cloned(), new.get(name).cloned()))
        .filter(|(_, old, new)| old != new)
        .collect()
}
