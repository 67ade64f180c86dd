//! `dvrun whoami [REGISTRY]`: as whom images are pulled.

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::credentials;
use super::failure::{Failure, Outcome, exit};
use super::settings::Settings;
use crate::registry::{Credential, Credentials, TOKEN_USER};

/// Show as whom registries are asked
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun whoami\n  dvrun whoami ghcr.io")]
pub struct Arguments {
    /// The registry's host; all that there are credentials for otherwise
    registry: Option<String>,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let credentials = credentials::known(settings.home.as_deref());
    match &arguments.registry {
        Some(registry) => one(registry, &credentials, global),
        None => all(&credentials, global),
    }
}

fn one(registry: &str, known: &Credentials, global: &Global) -> Outcome {
    let registry = credentials::registry(registry)?;
    let user = match known.find(registry.host(), "")? {
        Some(Credential::Password { user, .. }) => user,
        // A token says to its registry alone whose it is.
        Some(Credential::IdentityToken(_)) => TOKEN_USER.to_owned(),
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

fn all(credentials: &Credentials, global: &Global) -> Outcome {
    let logins = credentials.list()?;
    if global.json {
        let logins: Vec<_> = logins
            .iter()
            .map(|login| json!({"registry": login.registry, "user": login.user, "file": login.file, "helper": login.helper}))
            .collect();
        println!("{:#}", json!(logins));
        return Ok(exit::DONE);
    }
    if logins.is_empty() && !global.quiet {
        eprintln!("no credentials are stored; `dvrun login REGISTRY` stores some, public images need none");
    }
    let width = logins.iter().map(|login| login.registry.chars().count()).max().unwrap_or_default();
    for login in &logins {
        let place = match &login.helper {
            Some(helper) => helper.clone(),
            None => login.file.display().to_string(),
        };
        println!("{:<width$}  {}  {place}", login.registry, login.user);
    }
    Ok(exit::DONE)
}
