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
use crate::oci::{Algorithm, Digest, Hasher, Reference};
use crate::registry::{self, Session};

/// Put an image or a SIF file into a registry
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun push oci:image:1.0 docker://ghcr.io/lab/tools:1.0\n  dvrun push tools.sif oras://ghcr.io/lab/tools-sif:1.0"
)]
pub struct Arguments {
    /// FILE.sif, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, docker://…
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
            let file = Path::new(&arguments.source);
            let (sum, size) =
                sum(file).map_err(|error| Failure::message(exit::USAGE, format!("cannot read {}: {error}", file.display())))?;
            let digest = with_session(tags, global, settings, async |session| {
                Ok(registry::push_sif(session, file, &sum, size, &reference).await?)
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
    if arguments.source.ends_with(".sif") {
        return Err(Failure::message(exit::USAGE, "a SIF file is no image of layers").hint(format!("push it to oras://{reference}")));
    }
    let source = images::source(&arguments.source)?;
    let platform = images::platform(arguments.platform.as_deref())?;
    let resolved = registry::resolve(session, &source, &platform).await?;
    let pulled = registry::pull(session, &resolved, &|_, _| {}).await?;
    Ok(registry::push_image(session, &resolved, &pulled, reference).await?)
}

fn sum(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
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
