//! `dvrun run-app IMAGE APP [ARGS…]`: a SCIF app of an image, at hand.

use clap::Args;

use super::args::Global;
use super::container::{self, ContainerOptions};
use super::failure::Outcome;
use super::images;
use super::settings::Settings;
use crate::runtime;

/// Run a SCIF app of an image
///
/// Options stand before the image; all that follows the app's name is the app's. `dvrun apps IMAGE` lists them.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun run-app image.sif call --help\n  dvrun run-app --bind ./data:/data:ro oci:image:1.0 evaluate /data/truth.vcf"
)]
pub struct Arguments {
    #[command(flatten)]
    options: ContainerOptions,
    /// docker://…, oras://…, oci:DIR[:TAG], a SIF or SquashFS file, a root folder, or a digest from `image ls`
    image: String,
    /// The app's name
    app: String,
    /// The app's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let image = images::rootfs(&arguments.image, arguments.options.offline.into(), global, settings)?;
    let app = runtime::app(&image.root, &arguments.app, &arguments.args)?;
    let container = arguments.options.container(&image, app.argv, app.env)?;
    container::run(&arguments.image, &container)
}
