//! `dvrun fetch FILE`: images and data into the store, and stop.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Outcome, exit};
use super::file::Overrides;
use super::prepare::{self, Selected, Wanted};
use super::settings::Settings;

/// Fetch a workflow's images and data, and stop
#[derive(Args)]
#[command(after_help = "Example:\n  dvrun fetch pipeline.yaml && dvrun submit pipeline.yaml --offline")]
pub struct Arguments {
    /// The workflow file
    file: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let wanted = Wanted {
        file: arguments.file.clone(),
        overrides: arguments.overrides.clone(),
        selected: Selected::default(),
    };
    let prepared = prepare::plan(&wanted, global, settings)?;
    prepare::fetch_all(&prepared, global, settings)?;
    let lock = &prepared.plan.lock;
    if global.json {
        println!("{}", json!({"images": lock.images, "data": lock.data}));
    } else if !global.quiet {
        for (name, image) in &lock.images {
            let digest = image.digest.as_ref().map(ToString::to_string).unwrap_or_default();
            println!("image {name} {digest}");
        }
        for (name, data) in &lock.data {
            println!("data {name} {}", data.path.display());
        }
    }
    Ok(exit::DONE)
}
