//! `dvrun tags REPOSITORY`: what a registry has of an image.

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::images::{self, with_session};
use super::settings::Settings;
use crate::oci::Source;
use crate::registry::{self, TagPolicy};

/// List the tags of a repository
#[derive(Args)]
#[command(after_help = "Examples:\n  dvrun tags docker://debian\n  dvrun tags quay.io/biocontainers/samtools --json")]
pub struct Arguments {
    /// docker://[HOST/]NAME
    repository: String,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let source = images::source(&arguments.repository)?;
    let Source::Registry(reference) = &source else {
        return Err(Failure::message(exit::USAGE, format!("{source} is in no registry")).hint("name a repository: docker://HOST/NAME"));
    };
    let tags = with_session(TagPolicy::Ask, global, settings, async |session| {
        Ok(registry::tags(session, reference).await?)
    })?;
    print(global, &tags);
    Ok(exit::DONE)
}

fn print(global: &Global, tags: &[String]) {
    if global.json {
        println!("{}", json!(tags));
        return;
    }
    for tag in tags {
        // A registry's words: none of them may steer the terminal.
        let plain: String = tag.chars().filter(|c| !c.is_control()).collect();
        println!("{plain}");
    }
}
