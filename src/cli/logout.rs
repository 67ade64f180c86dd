//! `dvrun logout REGISTRY`: what `login` kept is forgotten.

use clap::Args;

use super::args::Global;
use super::credentials::{self, At};
use super::failure::{Outcome, exit};
use super::settings::Settings;
use crate::registry;

/// Forget the credentials for a registry
#[derive(Args)]
#[command(after_help = "Example:\n  dvrun logout ghcr.io")]
pub struct Arguments {
    #[command(flatten)]
    at: At,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let registry = arguments.at.registry()?;
    let path = credentials::docker(settings.home.as_deref())?;
    let found = registry::remove(&path, registry.host())?;
    if !global.quiet {
        match found {
            true => eprintln!("logged out of {registry}"),
            false => eprintln!("there were no credentials for {registry} in {}", path.display()),
        }
    }
    Ok(exit::DONE)
}
