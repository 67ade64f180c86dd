//! `dvrun apps IMAGE`: the SCIF apps of an image.

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Outcome, exit};
use super::images;
use super::settings::Settings;
use crate::runtime;

/// List the SCIF apps of an image
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun apps oci:image:1.0\n  dvrun apps docker://127.0.0.1:5000/lab/tools:1.0 --json")]
pub struct Arguments {
    /// docker://…, oras://…, oci:DIR[:TAG], a SIF or SquashFS file, or a root folder
    image: String,
    /// Use only what is in the store; ask no server
    #[arg(long)]
    offline: bool,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let image = images::rootfs(&arguments.image, arguments.offline.into(), global, settings)?;
    let apps = runtime::apps(&image.root)?;
    if global.json {
        println!("{}", json!({"apps": apps}));
    } else {
        apps.iter().for_each(|app| println!("{app}"));
    }
    Ok(exit::DONE)
}
