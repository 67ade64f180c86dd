//! `dvrun logout REGISTRY`: what `login` kept is forgotten.

use clap::Args;

use super::args::Global;
use super::credentials;
use super::failure::{Failure, Outcome, exit};
use super::settings::Settings;
use crate::registry::{self, Registry};

/// Forget the credentials for a registry
#[derive(Args)]
#[command(after_help = "Example:\n  dvrun logout ghcr.io")]
pub struct Arguments {
    /// The registry's host
    #[arg(default_value = "docker.io")]
    registry: String,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let registry: Registry = arguments.registry.parse().map_err(|error: registry::RegistryError| {
        let hint = error.hint();
        Failure::new(exit::USAGE, &error, hint)
    })?;
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
