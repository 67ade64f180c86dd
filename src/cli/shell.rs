//! `dvrun shell IMAGE`: a shell in a container, for a person.

use clap::Args;

use super::args::Global;
use super::container::{self, ContainerOptions};
use super::failure::{Failure, Outcome, exit};
use super::images;
use super::settings::Settings;
use crate::runtime::{self, DEFAULT_PATH, Root};

/// Start a shell in a container
///
/// The shell is your own ($SHELL) where the image has it, else bash, else sh.
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun shell docker://debian:12\n  dvrun shell --writable-tmpfs --bind ./data:/data:ro image.sif")]
pub struct Arguments {
    #[command(flatten)]
    options: ContainerOptions,
    /// docker://…, oras://…, oci:DIR[:TAG], a SIF or SquashFS file, a root folder, or a digest from `image ls`
    image: String,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let image = images::rootfs(&arguments.image, arguments.options.offline.into(), global, settings)?;
    let argv = vec![shell(&image.root)?];
    if container::at_terminal() {
        let container = arguments.options.container(&image, argv, container::terminal_type(), settings)?;
        container::run_on_terminal(&arguments.image, &container)
    } else {
        let container = arguments.options.container(&image, argv, Vec::new(), settings)?;
        container::run(&arguments.image, &container)
    }
}

fn shell(root: &Root) -> Result<String, Failure> {
    let own = std::env::var("SHELL").ok().filter(|shell| shell.starts_with('/'));
    for shell in own.into_iter().chain(["bash", "sh"].map(str::to_owned)) {
        if runtime::find_program(root, &shell, DEFAULT_PATH)?.is_none() {
            return Ok(shell);
        }
    }
    let failure = Failure::message(
        exit::NOT_FOUND,
        format!("the image has no shell (looked for bash and sh in {DEFAULT_PATH})"),
    );
    Err(failure.hint("run its own program: dvrun exec IMAGE"))
}
