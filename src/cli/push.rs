//! `dvrun push SOURCE DESTINATION`: an image or a SIF file into a registry.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::images::{self, Network, with_session};
use super::settings::Settings;
use crate::oci::{Algorithm, Digest, Hasher, Reference, Source};
use crate::registry::{self, Session};
use crate::sif::Sif;

/// Put an image or a SIF file into a registry
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun push oci:image:1.0 docker://ghcr.io/lab/tools:1.0\n  dvrun push tools.sif oras://ghcr.io/lab/tools-sif:1.0"
)]
pub struct Arguments {
    /// FILE.sif, oras://…, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, docker://…
    source: String,
    /// docker://HOST/NAME:TAG, or oras://HOST/NAME:TAG for a SIF file
    destination: String,
    /// os/architecture[/variant] of the image; this host's otherwise
    #[arg(long)]
    platform: Option<String>,
}

/// Where to, and as what.
enum Destination {
    Image(Reference),
    Artifact(Reference),
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let destination = destination(&arguments.destination)?;
    let tags = images::tags(Network::Use, settings);
    let (digest, reference) = match destination {
        Destination::Artifact(reference) => {
            let digest = with_session(tags, global, settings, async |session| {
                artifact(session, arguments, &reference).await
            })?;
            (digest, format!("oras://{reference}"))
        }
        Destination::Image(reference) => {
            let digest = with_session(tags, global, settings, async |session| image(session, arguments, &reference).await)?;
            (digest, format!("docker://{reference}"))
        }
    };
    if global.json {
        println!("{}", json!({"digest": digest, "reference": reference}));
    } else if !global.quiet {
        println!("{digest} {reference}");
    }
    Ok(exit::DONE)
}

fn destination(text: &str) -> Result<Destination, Failure> {
    let of = |text: &str| {
        text.parse::<Reference>()
            .map_err(|error| Failure::new(exit::USAGE, &error, None))
            .and_then(|reference| match reference.digest() {
                None => Ok(reference),
                Some(_) => Err(Failure::message(exit::USAGE, "what is pushed has its own digest: name a tag")),
            })
    };
    match (text.strip_prefix("docker://"), text.strip_prefix("oras://")) {
        (Some(rest), _) => Ok(Destination::Image(of(rest)?)),
        (_, Some(rest)) => Ok(Destination::Artifact(of(rest)?)),
        _ => Err(Failure::message(exit::USAGE, format!("`{text}` names no registry"))
            .hint("write docker://HOST/NAME:TAG, or oras://HOST/NAME:TAG for a SIF file")),
    }
}

async fn image(session: &Session<'_>, arguments: &Arguments, reference: &Reference) -> Result<Digest, Failure> {
    let source = images::source(&arguments.source)?;
    if let Source::Artifact(_) | Source::Path(_) = source {
        return Err(
            Failure::message(exit::USAGE, format!("{source} is no image of layers")).hint(format!("push a SIF file to oras://{reference}"))
        );
    }
    let platform = images::platform(arguments.platform.as_deref())?;
    let resolved = registry::resolve(session, &source, &platform).await?;
    let pulled = registry::pull(session, &resolved, &|_, _| {}).await?;
    Ok(registry::push_image(session, &resolved, &pulled, reference).await?)
}

/// A SIF file of the user's, or of a registry.
async fn artifact(session: &Session<'_>, arguments: &Arguments, reference: &Reference) -> Result<Digest, Failure> {
    let unreadable = |path: &Path, error: &dyn std::fmt::Display| {
        Failure::message(exit::USAGE, format!("cannot push {}: {error}", path.display())).hint("what is kept under oras:// is a SIF file")
    };
    match images::source(&arguments.source)? {
        Source::Path(path) => {
            let file = File::open(&path).map_err(|error| unreadable(&path, &error))?;
            Sif::read(&file).map_err(|error| unreadable(&path, &error))?;
            let (digest, size) = sum(file).map_err(|error| unreadable(&path, &error))?;
            Ok(registry::push_sif(session, &path, &digest, size, reference).await?)
        }
        Source::Artifact(from) => {
            let resolved = registry::resolve_sif(session, &from).await?;
            let path = registry::pull_sif(session, &resolved).await?;
            Ok(registry::push_sif(session, &path, &resolved.sif.digest, resolved.sif.size, reference).await?)
        }
        source => Err(Failure::message(exit::USAGE, format!("{source} is no SIF file")).hint(format!(
            "push its layers to docker://{reference}, or make one: `dvrun pull {source} -o FILE.sif`"
        ))),
    }
}

fn sum(mut file: File) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
