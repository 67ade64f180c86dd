//! `dvrun whoami REGISTRY`: as whom images are pulled.

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::credentials;
use super::failure::{Failure, Outcome, exit};
use super::settings::Settings;
use crate::registry::{self, Credential, Registry};

/// Show as whom a registry is asked
#[derive(Args)]
#[command(after_help = "Example:\n  dvrun whoami ghcr.io")]
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
    let user = match credentials::known(settings.home.as_deref()).find(registry.host(), "")? {
        Some(Credential::Password { user, .. }) => user,
        // A token says to its registry alone whose it is.
        Some(Credential::IdentityToken(_)) => "<token>".to_owned(),
        None => {
            return Err(Failure::message(exit::FAILED, format!("there are no credentials for {registry}"))
                .hint(format!("log in with `dvrun login {registry}`; public images need none")));
        }
    };
    match global.json {
        true => println!("{}", json!({"registry": registry.host(), "user": user})),
        false => println!("{user}"),
    }
    Ok(exit::DONE)
}
