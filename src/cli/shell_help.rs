//! `dvrun completions SHELL` and `dvrun man`: what a package puts beside the binary.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::args;
use super::failure::{Failure, Outcome, exit};
use super::say;

/// Print a shell's completion script
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun completions bash > ~/.local/share/bash-completion/completions/dvrun\n  dvrun completions zsh > ~/.zfunc/_dvrun"
)]
pub struct Completions {
    shell: Shell,
}

/// Print the manual page, or write one for each command
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun man | man -l -\n  dvrun man --into ~/.local/share/man/man1")]
pub struct Man {
    /// Write dvrun.1 and a page for each command into this folder
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
}

/// The command line without what is not for people.
fn command() -> Command {
    let whole = args::command();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut command = Command::new("dvrun").version(env!("CARGO_PKG_VERSION"));
    command = command.args(whole.get_arguments().cloned()).subcommands(shown);
    let texts = (whole.get_about().cloned(), whole.get_after_help().cloned());
    match texts {
        (Some(about), Some(after)) => command.about(about).after_help(after),
        _ => command,
    }
}

pub fn completions(arguments: &Completions) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut command(), "dvrun", &mut text);
    say::bytes(&text);
    Ok(exit::DONE)
}

pub fn man(arguments: &Man) -> Outcome {
    let command = command();
    let failed = |error: std::io::Error| Failure::new(exit::INFRASTRUCTURE, &error, None);
    match &arguments.into {
        Some(folder) => clap_mangen::generate_to(command, folder)
            .map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot write into {}: {error}", folder.display())))?,
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(command).render(&mut text).map_err(failed)?;
            say::bytes(&text);
        }
    }
    Ok(exit::DONE)
}
