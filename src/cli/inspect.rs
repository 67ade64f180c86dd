//! `dvrun inspect IMAGE`: what an image is, without its layers.

use std::io::{self, Write};

use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::images::{platform, source, with_session};
use super::inspect_file::{self, Part};
use super::say;
use super::settings::Settings;
use crate::oci::{Execution, ImageConfig, Reference, Source};
use crate::registry::{self, Resolved, TagPolicy};

/// Show an image's environment, entry point, labels and layers
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun inspect docker://debian:12\n  dvrun inspect oci:image:1.0 --json\n  dvrun inspect image.sif")]
pub struct Arguments {
    /// docker://…, oras://…, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, or a SIF or SquashFS file
    reference: String,
    /// os/architecture[/variant]; this host's otherwise
    #[arg(long)]
    platform: Option<String>,
    /// The config blob as it is
    #[arg(long, conflicts_with = "raw")]
    config: bool,
    /// The platform's manifest as it is
    #[arg(long)]
    raw: bool,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let source = source(&arguments.reference)?;
    let part = if arguments.config { Part::Config } else { Part::All };
    match &source {
        Source::Path(_) if arguments.raw => return Err(Failure::message(exit::USAGE, "a file has no manifest to show with --raw")),
        Source::Path(path) => return inspect_file::run(path, part, global),
        Source::Artifact(reference) => return artifact(reference, part, arguments, global, settings),
        _ => {}
    }
    let platform = platform(arguments.platform.as_deref())?;
    let found = with_session(TagPolicy::Ask, global, settings, async |session| {
        let resolved = registry::resolve(session, &source, &platform).await?;
        // No more is fetched than is shown: an artifact that is no image has a manifest, too.
        if arguments.raw {
            return Ok(Found::Bytes(resolved.manifest));
        }
        if arguments.config {
            return Ok(Found::Bytes(registry::config_blob(session, &resolved).await?));
        }
        let config = registry::config(session, &resolved).await?;
        Ok(Found::Image(Box::new(resolved), Box::new(config)))
    })?;
    match found {
        Found::Bytes(bytes) => print_bytes(&bytes),
        Found::Image(resolved, config) if global.json => print_json(&resolved, &config),
        Found::Image(resolved, config) => print_text(&resolved, &config),
    }
    .unwrap_or_else(say::lost);
    Ok(exit::DONE)
}

/// How much of a SIF file is fetched to see what it is: its table, its texts and the beginning of its file system.
const HEAD: u64 = 256 << 10;

fn artifact(reference: &Reference, part: Part, arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let (resolved, head) = with_session(TagPolicy::Ask, global, settings, async |session| {
        let resolved = registry::resolve_sif(session, reference).await?;
        let head = match arguments.raw || session.store.find_blob(&resolved.sif.digest).is_some() {
            true => None,
            false => registry::sif_head(session, &resolved, HEAD).await?,
        };
        Ok((resolved, head))
    })?;
    if arguments.raw {
        print_bytes(&resolved.manifest).unwrap_or_else(say::lost);
        return Ok(exit::DONE);
    }
    match (settings.store.find_blob(&resolved.sif.digest), head) {
        (Some(path), _) => inspect_file::run(&path, part, global),
        (None, Some(head)) => inspect_file::run_head(&resolved, &head, part, global),
        (None, None) => Err(
            Failure::message(exit::INFRASTRUCTURE, "the registry gives no part of a file, only the whole")
                .hint(format!("`dvrun pull oras://{reference}` fetches it; then this shows what it is")),
        ),
    }
}

enum Found {
    Bytes(Vec<u8>),
    Image(Box<Resolved>, Box<ImageConfig>),
}

fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn print_json(resolved: &Resolved, config: &ImageConfig) -> io::Result<()> {
    let layers: Vec<_> = resolved
        .layers
        .iter()
        .map(|layer| json!({"digest": layer.digest, "size": layer.size, "mediaType": layer.media_type}))
        .collect();
    let value = json!({
        "source": resolved.source.to_string(), "digest": resolved.digest, "platform": resolved.platform.to_string(),
        "config_digest": resolved.config.digest, "created": config.created, "config": config.config, "layers": layers,
    });
    writeln!(io::stdout(), "{value:#}")
}

fn print_text(resolved: &Resolved, config: &ImageConfig) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let execution = &config.config;
    writeln!(out, "source      {}", resolved.source)?;
    writeln!(out, "digest      {}", resolved.digest)?;
    writeln!(out, "platform    {}", resolved.platform)?;
    if let Some(created) = &config.created {
        writeln!(out, "created     {created}")?;
    }
    print_execution(&mut out, execution)?;
    let total: u64 = resolved.layers.iter().map(|layer| layer.size).sum();
    for layer in &resolved.layers {
        writeln!(out, "layer       {} {:>10}", layer.digest, HumanBytes(layer.size).to_string())?;
    }
    writeln!(
        out,
        "size        {} in {} layers, compressed",
        HumanBytes(total),
        resolved.layers.len()
    )
}

/// How an image wants to be run.
pub fn print_execution(out: &mut impl Write, execution: &Execution) -> io::Result<()> {
    writeln!(out, "entrypoint  {}", json!(execution.entrypoint))?;
    writeln!(out, "cmd         {}", json!(execution.cmd))?;
    for (name, value) in [("workdir", &execution.working_dir), ("user", &execution.user)] {
        if !value.is_empty() {
            writeln!(out, "{name:<11} {value}")?;
        }
    }
    for variable in &execution.env {
        writeln!(out, "env         {variable:?}")?;
    }
    for (name, value) in &execution.labels {
        writeln!(out, "label       {name}={value:?}")?;
    }
    Ok(())
}
