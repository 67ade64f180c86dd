//! `dvrun run-app IMAGE APP [ARGS…]`: a SCIF app of an image, at hand.

use clap::Args;

use super::args::Global;
use super::container::{self, ContainerOptions};
use super::failure::{Failure, Outcome, exit};
use super::images;
use super::settings::Settings;
use crate::runtime;

/// Run a SCIF app of an image
///
/// Options stand before the image; all that follows the app's name is the app's. `dvrun apps IMAGE` lists them.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  dvrun run-app image.sif call --help\n  dvrun run-app --bind ./data:/data:ro oci:image:1.0 evaluate /data/truth.vcf"
)]
pub struct Arguments {
    #[command(flatten)]
    options: ContainerOptions,
    /// docker://…, oras://…, oci:DIR[:TAG], a SIF or SquashFS file, a root folder, or a digest from `image ls`
    image: String,
    /// The app's name, and its arguments
    // One list, so that not even `--help` after the name is ours.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["APP", "ARGS"])]
    app: Vec<String>,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let image = images::rootfs(&arguments.image, arguments.options.offline.into(), global, settings)?;
    let [name, args @ ..] = arguments.app.as_slice() else {
        return Err(Failure::message(exit::USAGE, "name the app: dvrun run-app IMAGE APP"));
    };
    let app = runtime::app(&image.root, name, args)?;
    let container = arguments.options.container(&image, app.argv, app.env, settings)?;
    container::run(&arguments.image, &container)
}
