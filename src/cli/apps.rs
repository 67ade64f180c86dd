//! `dvrun apps IMAGE`: the SCIF apps of an image.

use std::fs::File;
use std::path::Path;

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::images;
use super::settings::Settings;
use crate::runtime::{self, Root};
use crate::squashfs::{Inode, Kind, Squashfs, SquashfsError};

/// List the SCIF apps of an image
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun apps oci:image:1.0\n  dvrun apps docker://127.0.0.1:5000/lab/tools:1.0 --json")]
pub struct Arguments {
    /// docker://…, oci:DIR[:TAG], or a root folder
    image: String,
    /// Use only what is in the store; ask no server
    #[arg(long)]
    offline: bool,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let image = images::rootfs(&arguments.image, arguments.offline.into(), global, settings)?;
    let apps = match &image.root {
        Root::Folder(path) => runtime::apps(path).map_err(|error| {
            let hint = error.hint();
            Failure::new(exit::INFRASTRUCTURE, &error, hint)
        })?,
        Root::Squashfs { file, offset, .. } => listed(file, *offset).map_err(|error| {
            let hint = error.hint();
            Failure::new(exit::INFRASTRUCTURE, &error, hint)
        })?,
    };
    if global.json {
        println!("{}", json!({"apps": apps}));
    } else {
        apps.iter().for_each(|app| println!("{app}"));
    }
    Ok(exit::DONE)
}

/// Names below `/scif/apps` in an image that is one file, sorted.
fn listed(file: &Path, offset: u64) -> Result<Vec<String>, SquashfsError> {
    const CACHE: usize = 4 << 20;
    let opened = File::open(file).map_err(|source| SquashfsError::Read { at: 0, source })?;
    let image = Squashfs::open(opened, offset, CACHE)?;
    let mut folder: Inode = image.inode(image.root())?;
    for name in ["scif", "apps"] {
        let below = match folder.kind() {
            Kind::Folder => image.lookup(&folder, name.as_bytes())?,
            _ => None,
        };
        match below {
            Some(below) => folder = image.inode(below)?,
            None => return Ok(Vec::new()),
        }
    }
    if folder.kind() != Kind::Folder {
        return Ok(Vec::new());
    }
    let mut apps = Vec::new();
    for entry in image.list(&folder)?.iter() {
        if entry.kind == Kind::Folder {
            apps.push(String::from_utf8_lossy(entry.name).into_owned());
        }
    }
    apps.sort();
    Ok(apps)
}
