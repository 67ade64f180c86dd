//! `dvrun pull REF`: an image into the store, and from there to a path.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::file::Overrides;
use super::images::{self, Network, with_session};
use super::settings::Settings;
use crate::fetch::{self, Found};
use crate::image::{App, Compression, Limits, SquashfsOptions};
use crate::oci::{Digest, Platform, Source};
use crate::registry::{self, Session};
use crate::store::Scratch;

/// Fetch an image
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun pull docker://debian:12\n  dvrun pull docker://debian:12 -o debian.sif\n  dvrun pull oras://ghcr.io/lab/tools-sif:1.0 -o tools.sif\n  dvrun pull docker://127.0.0.1:5000/lab/tools:1.0 -o tools --format dir\n  dvrun pull --file pipeline.yaml tools -o tools.sif"
)]
pub struct Arguments {
    /// docker://…, oras://…, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, or a SIF or SquashFS file; with --file, an image's name in it
    reference: String,
    /// Where to put it. Without, it goes into the store alone, as `run` and `exec` use it
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Sif, requires = "output")]
    format: Format,
    /// Of SIF and SquashFS: zstd[:1-22]; gzip[:1-12] (for kernels before 4.14); xz[:0-9] (small, slow); lz4 (large, fast); none
    #[arg(long, value_name = "NAME[:LEVEL]", default_value = "zstd:3", requires = "output")]
    compression: Compression,
    /// A workflow file: the image of that name in it, whose apps are written into a SIF
    #[arg(long, short, value_name = "FILE", conflicts_with = "platform")]
    file: Option<PathBuf>,
    /// os/architecture[/variant]; this host's otherwise
    #[arg(long)]
    platform: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One file that Apptainer runs too
    Sif,
    /// One file with the file system alone
    Squashfs,
    /// The root file system as a folder
    Dir,
    /// An OCI image layout
    Oci,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    if let Some(output) = &arguments.output {
        refuse_existing(output)?;
    }
    let (source, platform, apps) = match &arguments.file {
        Some(file) => declared(file, &arguments.reference)?,
        None => {
            let platform = images::platform(arguments.platform.as_deref())?;
            (images::source(&arguments.reference)?, platform, Vec::new())
        }
    };
    let tags = images::tags(Network::Use, settings);
    let options = SquashfsOptions {
        compression: arguments.compression,
        ..SquashfsOptions::default()
    };
    let (digest, path) = with_session(tags, global, settings, async |session| {
        let found = fetch::find(session, &source, &platform).await?;
        let Some(output) = &arguments.output else {
            let stored = fetch::image(session, &found, Limits::default()).await?;
            return Ok((stored.digest.clone(), stored.root().path().to_owned()));
        };
        let format = match arguments.format {
            Format::Sif => Some(fetch::Format::Sif { options, apps }),
            Format::Squashfs => Some(fetch::Format::Squashfs(options)),
            Format::Dir => Some(fetch::Format::Folder),
            Format::Oci => None,
        };
        let digest = write(session, &found, output, format).await?;
        Ok((digest, output.clone()))
    })?;
    if global.json {
        println!("{}", json!({"digest": digest, "path": path}));
    } else if !global.quiet {
        println!("{digest} {}", path.display());
    }
    Ok(exit::DONE)
}

pub fn refuse_existing(output: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(output) {
        Ok(_) => Err(Failure::message(exit::USAGE, format!("{} exists", output.display())).hint("remove it, or give another path with -o")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::message(exit::USAGE, format!("{}: {error}", output.display()))),
    }
}

/// The image `name` of a workflow file, and its apps.
fn declared(file: &Path, name: &str) -> Result<(Source, Platform, Vec<App>), Failure> {
    let workflow = super::file::read(file, &Overrides::default())?;
    let Some(image) = workflow.images.get(name) else {
        let known: Vec<&str> = workflow.images.keys().map(String::as_str).collect();
        let message = format!("{} has no image `{name}`", file.display());
        return Err(Failure::message(exit::USAGE, message).hint(format!("it has {}", known.join(", "))));
    };
    let (source, platform) = fetch::image_source(name, image)?;
    let apps = image.apps.iter().map(|(app, declared)| {
        let packed = workflow.packed(declared).map_err(|error| {
            Failure::new(exit::USAGE, &error, error.hint()).hint(format!(
                "app `{app}` is to be written into an image: it can name params, and nothing of a stage"
            ))
        })?;
        Ok(App {
            name: app.clone(),
            help: packed.help,
            run: packed.run,
            env: packed.env,
            ..App::default()
        })
    });
    Ok((source, platform, apps.collect::<Result<_, Failure>>()?))
}

/// Writes beside `output`, as an OCI layout where no other format is named, and renames, so that it appears whole or not at all. Gives the digest of what is there now.
async fn write(session: &Session<'_>, found: &Found, output: &Path, format: Option<fetch::Format>) -> Result<Digest, Failure> {
    let output = std::path::absolute(output).map_err(|error| Failure::new(exit::USAGE, &error, None))?;
    let parent = output.parent().unwrap_or(Path::new("/"));
    let failed = |error: std::io::Error| Failure::message(exit::INFRASTRUCTURE, format!("cannot write to {}: {error}", parent.display()));
    let beside = Scratch::beside(parent)?;
    let made = beside.path().join("new");
    let written = match format {
        Some(format) => fetch::image_to(session, found, Limits::default(), &format, &made)
            .await
            .map(|()| found.digest().clone())
            .map_err(Failure::from),
        None => write_layout(session, found, &made).await,
    };
    written.and_then(|digest| fs::rename(&made, &output).map_err(failed).map(|()| digest))
}

async fn write_layout(session: &Session<'_>, found: &Found, made: &Path) -> Result<Digest, Failure> {
    let Found::Layers(resolved) = found else {
        let text = format!("{} is not an image of layers: there is no layout of it", found.name());
        return Err(Failure::message(exit::USAGE, text).hint("leave out --format"));
    };
    let pulled = registry::pull(session, resolved, &|_, _| {}).await?;
    Ok(registry::write_layout(session, resolved, &pulled, made).await?)
}
