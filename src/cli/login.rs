//! `dvrun login REGISTRY`: credentials into Docker's `config.json`, or the helper that it names.

use std::io::{self, IsTerminal, Read, Write};

use clap::Args;
use nix::sys::termios::{self, LocalFlags, SetArg};

use super::args::{Global, block_on};
use super::credentials::{self, At};
use super::failure::{Failure, Outcome, exit};
use super::progress::Downloads;
use super::settings::Settings;
use crate::net::{Client, Event};
use crate::registry::{self, Checked, Credential, Credentials, Kept, Registry, Session, TagPolicy};

/// No password is longer; tokens are.
const PASSWORD_MAX: u64 = 64 << 10;

/// Log in to a registry
#[derive(Args)]
#[command(
    after_help = "The credentials are tried, then kept in $DOCKER_CONFIG/config.json or ~/.docker/config.json (mode 600), or with the\n\
                  credential helper that it names.\n\n\
                  Examples:\n  dvrun login ghcr.io -u ada\n  dvrun login nvcr.io -u '$oauthtoken' --password-stdin < token"
)]
pub struct Arguments {
    #[command(flatten)]
    at: At,
    /// Who to log in as; asked for otherwise
    #[arg(long, short)]
    username: Option<String>,
    /// Read the password or token from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let registry = arguments.at.registry()?;
    let credential = ask(arguments)?;
    let checked = check(&registry, credential.clone(), global, settings)?;
    let path = credentials::docker(settings.home.as_deref())?;
    let kept = registry::keep(&path, registry.host(), &credential)?;
    if !global.quiet {
        let place = match kept {
            Kept::File => format!("{}, readable by you alone", path.display()),
            Kept::Helper(name) => name,
        };
        let text = match checked {
            Checked::Accepted => format!("logged in to {registry}; the credentials are in {place}"),
            Checked::NotAsked => {
                format!("{registry} lets everybody in: whether the credentials are right is not known. They are in {place}")
            }
        };
        eprintln!("{text}");
    }
    Ok(exit::DONE)
}

/// Whether the registry takes them. Only these are tried, not what lies in files.
fn check(registry: &Registry, credential: Credential, global: &Global, settings: &Settings) -> Result<Checked, Failure> {
    let downloads = Downloads::new(global.quiet);
    let show = |event: Event<'_>| downloads.show(event);
    let client = Client::new(settings.net.clone())?;
    let mut credentials = Credentials::none();
    credentials.insert(registry.host(), credential);
    let session = Session::new(&client, &settings.store, &credentials, TagPolicy::Ask, &show);
    block_on(registry::check_login(&session, registry))
}

fn ask(arguments: &Arguments) -> Result<Credential, Failure> {
    let unreadable = |error: io::Error| Failure::message(exit::USAGE, format!("cannot read from standard input: {error}"));
    let user = match &arguments.username {
        Some(user) => user.clone(),
        None => prompt("Username: ", Echo::On)?,
    };
    let password = if arguments.password_stdin {
        let mut text = String::new();
        io::stdin().take(PASSWORD_MAX).read_to_string(&mut text).map_err(unreadable)?;
        // The line's end is the shell's, not the password's.
        let text = text.strip_suffix('\n').unwrap_or(&text);
        text.strip_suffix('\r').unwrap_or(text).to_owned()
    } else {
        prompt("Password: ", Echo::Off)?
    };
    if user.is_empty() || password.is_empty() {
        return Err(Failure::message(exit::USAGE, "the user's name and the password must not be empty"));
    }
    if user.contains(':') {
        return Err(Failure::message(
            exit::USAGE,
            "a user's name cannot have a colon in it (RFC 7617, section 2)",
        ));
    }
    Ok(Credential::Password { user, password })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Echo {
    On,
    Off,
}

/// A line from the terminal.
fn prompt(text: &str, echo: Echo) -> Result<String, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::message(exit::USAGE, "standard input is no terminal to ask at").hint("give -u USER and --password-stdin"));
    }
    let failed = |error: io::Error| Failure::message(exit::USAGE, format!("cannot read from the terminal: {error}"));
    write!(io::stderr(), "{text}").map_err(failed)?;
    let before = termios::tcgetattr(&stdin).map_err(|error| failed(error.into()))?;
    if echo == Echo::Off {
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        silent.local_flags.insert(LocalFlags::ECHONL);
        termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).map_err(|error| failed(error.into()))?;
    }
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    if echo == Echo::Off {
        termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &before).map_err(|error| failed(error.into()))?;
    }
    read.map_err(failed)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
