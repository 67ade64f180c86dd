//! `dvrun inspect FILE`: what a SIF or SquashFS file is.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use indicatif::HumanBytes;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::inspect::print_execution;
use crate::oci::Execution;
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

pub fn run(file: &Path, part: Part, global: &Global) -> Outcome {
    let facts = facts(file)?;
    let mut out = io::stdout().lock();
    if part == Part::Config {
        writeln!(out, "{:#}", json!(facts.execution))
    } else if global.json {
        print_json(&mut out, file, &facts)
    } else {
        print_text(&mut out, file, &facts)
    }
    .map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot write to standard output: {error}")))?;
    Ok(exit::DONE)
}

fn facts(path: &Path) -> Result<Facts, Failure> {
    let unreadable = |error: io::Error| Failure::message(exit::USAGE, format!("cannot read {}: {error}", path.display()));
    let file = File::open(path).map_err(unreadable)?;
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

fn print_json(out: &mut impl Write, file: &Path, facts: &Facts) -> io::Result<()> {
    let objects = facts.sif.iter().flat_map(|sif| &sif.objects);
    let objects: Vec<_> = objects
        .map(|object| json!({"id": object.id, "kind": object.description(), "name": object.name, "offset": object.offset, "size": object.size}))
        .collect();
    let value = json!({
        "file": file, "format": if facts.sif.is_some() { "sif" } else { "squashfs" },
        "architecture": facts.sif.as_ref().map(|sif| sif.architecture), "signed": facts.sif.as_ref().map(Sif::is_signed),
        "definition": facts.definition, "config": facts.execution, "objects": objects,
        "squashfs": {
            "compression": facts.image.codec().name(), "block_size": facts.image.block_size(), "inodes": facts.image.inode_count(),
        },
    });
    writeln!(out, "{value:#}")
}

fn print_text(out: &mut impl Write, file: &Path, facts: &Facts) -> io::Result<()> {
    writeln!(out, "file        {}", file.display())?;
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
