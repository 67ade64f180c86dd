//! `dvrun exec IMAGE -- CMD…`: one program in a container, at hand.

use clap::Args;

use super::args::Global;
use super::container::{self, ContainerOptions};
use super::failure::{Failure, Outcome, exit};
use super::images;
use super::settings::Settings;
use crate::runtime;

/// Run a program in a container
///
/// Nothing of the host is seen inside but what is bound. The exit status is the program's own; 127 when there is no such
/// program, 126 when it cannot be executed.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  dvrun exec docker://debian:12 -- cat /etc/os-release\n  dvrun exec image.sif -- python3 --version\n  dvrun exec --bind ./data:/data:ro oci:image:1.0 -- ls /data\n  dvrun exec --overlay ./changes --user root image.sif -- apt-get install -y jq\n  dvrun exec --gpus=0,1 image.sif -- python3 train.py"
)]
pub struct Arguments {
    /// docker://…, oras://…, oci:DIR[:TAG], a SIF or SquashFS file, a root folder, or a digest from `image ls`
    image: String,
    /// The program and its arguments; the image's own where absent
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
    #[command(flatten)]
    options: ContainerOptions,
    /// Give the program a terminal of the container's own
    #[arg(long, short)]
    tty: bool,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    if arguments.tty && !container::at_terminal() {
        return Err(Failure::message(exit::USAGE, "--tty: standard input and output are no terminal"));
    }
    let image = images::rootfs(&arguments.image, arguments.options.offline.into(), global, settings)?;
    let argv = match arguments.command.as_slice() {
        [] => runtime::entrypoint(&image.execution, &[])?,
        words => words.to_vec(),
    };
    match arguments.tty {
        true => {
            let container = arguments.options.container(&image, argv, container::terminal_type(), settings)?;
            container::run_on_terminal(&arguments.image, &container)
        }
        false => {
            let container = arguments.options.container(&image, argv, Vec::new(), settings)?;
            container::run(&arguments.image, &container)
        }
    }
}
