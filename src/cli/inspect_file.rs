//! `dvrun inspect FILE`, and of a SIF file in a registry: what a SIF or SquashFS file is.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;

use indicatif::HumanBytes;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::inspect::print_execution;
use crate::oci::{Execution, Source};
use crate::registry::ResolvedSif;
use crate::sif::{self, Sif};
use crate::squashfs::Squashfs;

/// Nothing is read but the superblock.
const CACHE: usize = 0;

/// What is told of a file.
struct Facts {
    /// `None` for a bare SquashFS.
    sif: Option<Sif>,
    definition: Option<String>,
    execution: Execution,
    image: Squashfs,
}

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    /// How it wants to be run, as JSON.
    Config,
}

pub fn run(path: &Path, part: Part, global: &Global) -> Outcome {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| Failure::message(exit::USAGE, format!("cannot read {name}: {error}")))?;
    let facts = facts(&name, file)?;
    print(&[("file", &name)], &facts, part, global)
}

/// The beginning of a registry's file, as far as it came, tells what it is.
pub fn run_head(resolved: &ResolvedSif, head: &[u8], part: Part, global: &Global) -> Outcome {
    let name = Source::Artifact(resolved.reference.clone()).to_string();
    let unusable = |error: io::Error| Failure::message(exit::INFRASTRUCTURE, format!("cannot make a temporary file: {error}"));
    let mut file = tempfile::tempfile().map_err(unusable)?;
    // As long as the whole, with nothing in the rest of it.
    file.write_all(head)
        .and_then(|()| file.set_len(resolved.sif.size))
        .and_then(|()| file.rewind())
        .map_err(unusable)?;
    let facts = facts(&name, file)?;
    let (digest, sum) = (resolved.digest.to_string(), resolved.sif.digest.to_string());
    let size = match global.json {
        true => resolved.sif.size.to_string(),
        false => HumanBytes(resolved.sif.size).to_string(),
    };
    print(
        &[("source", &name), ("digest", &digest), ("file", &sum), ("size", &size)],
        &facts,
        part,
        global,
    )
}

/// `origin` is what is known of the file without looking into it.
fn print(origin: &[(&str, &str)], facts: &Facts, part: Part, global: &Global) -> Outcome {
    let mut out = io::stdout().lock();
    if part == Part::Config {
        writeln!(out, "{:#}", json!(facts.execution))
    } else if global.json {
        print_json(&mut out, origin, facts)
    } else {
        print_text(&mut out, origin, facts)
    }
    .map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot write to standard output: {error}")))?;
    Ok(exit::DONE)
}

fn facts(name: &str, file: File) -> Result<Facts, Failure> {
    let unreadable = |error: io::Error| Failure::message(exit::USAGE, format!("cannot read {name}: {error}"));
    if !sif::is_sif(&file).map_err(unreadable)? {
        return Ok(Facts {
            sif: None,
            definition: None,
            execution: Execution::default(),
            image: Squashfs::open(file, 0, CACHE)?,
        });
    }
    let sif = Sif::read(&file)?;
    let offset = sif.primary()?.offset;
    Ok(Facts {
        definition: sif.definition(&file)?,
        execution: sif.execution(&file)?,
        sif: Some(sif),
        image: Squashfs::open(file, offset, CACHE)?,
    })
}

fn print_json(out: &mut impl Write, origin: &[(&str, &str)], facts: &Facts) -> io::Result<()> {
    let objects = facts.sif.iter().flat_map(|sif| &sif.objects);
    let objects: Vec<_> = objects
        .map(|object| json!({"id": object.id, "kind": object.description(), "name": object.name, "offset": object.offset, "size": object.size}))
        .collect();
    let mut value = json!({
        "format": if facts.sif.is_some() { "sif" } else { "squashfs" },
        "architecture": facts.sif.as_ref().map(|sif| sif.architecture), "signed": facts.sif.as_ref().map(Sif::is_signed),
        "definition": facts.definition, "config": facts.execution, "objects": objects,
        "squashfs": {
            "compression": facts.image.codec().name(), "block_size": facts.image.block_size(), "inodes": facts.image.inode_count(),
        },
    });
    for (name, text) in origin {
        value[name] = json!(text);
    }
    writeln!(out, "{value:#}")
}

fn print_text(out: &mut impl Write, origin: &[(&str, &str)], facts: &Facts) -> io::Result<()> {
    for (name, text) in origin {
        writeln!(out, "{name:<11} {text}")?;
    }
    if let Some(sif) = &facts.sif {
        if !sif.architecture.is_empty() {
            writeln!(out, "platform    linux/{}", sif.architecture)?;
        }
        let created = jiff::Timestamp::from_second(sif.created).map_or_else(|_| String::new(), |time| time.to_string());
        writeln!(out, "created     {created}")?;
        writeln!(out, "signed      {}", if sif.is_signed() { "yes" } else { "no" })?;
        print_execution(out, &facts.execution)?;
        for object in &sif.objects {
            let size = HumanBytes(object.size).to_string();
            writeln!(out, "object {:<4} {size:>10}  {} {}", object.id, object.description(), object.name)?;
        }
    }
    let image = &facts.image;
    let block = HumanBytes(image.block_size().into());
    writeln!(
        out,
        "squashfs    {}, blocks of {block}, {} inodes",
        image.codec().name(),
        image.inode_count()
    )
}
