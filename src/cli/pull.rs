//! `dvrun pull REF`: an image into the store, and from there to a path.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::images::{self, Network, with_session};
use super::settings::Settings;
use crate::fetch::{self, Found};
use crate::image::{Compression, Limits, SquashfsOptions};
use crate::oci::Digest;
use crate::registry::{self, Session};
use crate::store::remove_tree;

/// Fetch an image
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun pull docker://debian:12\n  dvrun pull docker://debian:12 -o debian.sif\n  dvrun pull oras://ghcr.io/lab/tools-sif:1.0 -o tools.sif\n  dvrun pull docker://127.0.0.1:5000/lab/tools:1.0 -o tools --format dir"
)]
pub struct Arguments {
    /// docker://…, oras://…, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, or a SIF or SquashFS file
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
    let source = images::source(&arguments.reference)?;
    let platform = images::platform(arguments.platform.as_deref())?;
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
        let digest = write(session, &found, output, arguments.format, options).await?;
        Ok((digest, output.clone()))
    })?;
    if global.json {
        println!("{}", json!({"digest": digest, "path": path}));
    } else if !global.quiet {
        println!("{digest} {}", path.display());
    }
    Ok(exit::DONE)
}

fn refuse_existing(output: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(output) {
        Ok(_) => Err(Failure::message(exit::USAGE, format!("{} exists", output.display())).hint("remove it, or give another path with -o")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::message(exit::USAGE, format!("{}: {error}", output.display()))),
    }
}

/// Writes beside `output` and renames, so that it appears whole or not at all. Gives the digest of what is there now.
async fn write(session: &Session<'_>, found: &Found, output: &Path, format: Format, options: SquashfsOptions) -> Result<Digest, Failure> {
    let output = std::path::absolute(output).map_err(|error| Failure::new(exit::USAGE, &error, None))?;
    let parent = output.parent().unwrap_or(Path::new("/"));
    let failed = |error: std::io::Error| Failure::message(exit::INFRASTRUCTURE, format!("cannot write to {}: {error}", parent.display()));
    let beside = tempfile::Builder::new().prefix(".dvrun-").tempdir_in(parent).map_err(failed)?;
    let made = beside.path().join("new");
    let format = match format {
        Format::Sif => Some(fetch::Format::Sif { options, apps: Vec::new() }),
        Format::Squashfs => Some(fetch::Format::Squashfs(options)),
        Format::Dir => Some(fetch::Format::Folder),
        Format::Oci => None,
    };
    let written = match format {
        Some(format) => fetch::image_to(session, found, Limits::default(), &format, &made)
            .await
            .map(|()| found.digest().clone())
            .map_err(Failure::from),
        None => write_layout(session, found, &made).await,
    };
    let placed = written.and_then(|digest| fs::rename(&made, &output).map_err(failed).map(|()| digest));
    if placed.is_err() && made.exists() {
        // With the folders in it that nobody may write to, which dropping `beside` would leave.
        remove_tree(&made).map_err(failed)?;
    }
    placed
}

async fn write_layout(session: &Session<'_>, found: &Found, made: &Path) -> Result<Digest, Failure> {
    let Found::Layers(resolved) = found else {
        let text = format!("{} is not an image of layers: there is no layout of it", found.name());
        return Err(Failure::message(exit::USAGE, text).hint("leave out --format"));
    };
    let pulled = registry::pull(session, resolved, &|_, _| {}).await?;
    Ok(registry::write_layout(session, resolved, &pulled, made).await?)
}
