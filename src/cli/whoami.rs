//! `dvrun whoami REGISTRY`: as whom images are pulled.

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::credentials::{self, At};
use super::failure::{Failure, Outcome, exit};
use super::settings::Settings;
use crate::registry::Credential;

/// Show as whom a registry is asked
#[derive(Args)]
#[command(after_help = "Example:\n  dvrun whoami ghcr.io")]
pub struct Arguments {
    #[command(flatten)]
    at: At,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let registry = arguments.at.registry()?;
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
