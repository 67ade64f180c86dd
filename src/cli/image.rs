//! `dvrun image …`: the images in the store.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::settings::Settings;
use super::{extract, verify};
use crate::oci::Source;
use crate::store::{Prune, Pruned, Removal, Store, StoredImage};
use crate::workflow::units::Seconds;

/// Look after the images in the store
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun image ls\n  dvrun image path docker://debian:12\n  dvrun image ls --label version=1.2\n  dvrun image rm sha256:4abc\n  dvrun image verify\n  dvrun image extract tools.sif ./tools\n  dvrun image prune --dry-run\n  dvrun image prune --older-than 30d --keep-last 2"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the images, oldest first
    Ls {
        /// Only those that have the label, with that value where one is given (repeatable: all of them)
        #[arg(long, value_name = "NAME[=VALUE]")]
        label: Vec<String>,
    },
    /// Print the folder, or the file, of an image's root file system
    Path(One),
    /// Show what is known of an image
    Info(One),
    /// Delete images from the store
    ///
    /// An image that somebody runs is not deleted. What a workflow needs is fetched again.
    Rm {
        /// A source as it was pulled, a digest or its beginning, or a label's NAME=VALUE
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Read images again, and say what of them has changed
    ///
    /// All images of the store where none is named. A file on disk has no checksum to be held against: of it, all is read.
    Verify {
        /// A SIF or SquashFS file; of the store, a source as it was pulled, a digest or its beginning, or a label's NAME=VALUE
        #[arg(value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Write an image's files into a new folder
    Extract {
        /// A SIF or SquashFS file; of the store, a source as it was pulled, a digest or its beginning, or a label's NAME=VALUE
        image: String,
        /// What must not exist yet
        folder: PathBuf,
    },
    /// Show what the store takes up
    Df,
    /// Delete what no image and no data set needs
    ///
    /// That is what dead processes left, unfinished downloads, and the layers of images that are converted. With --keep-last, images
    /// too.
    Prune {
        /// Only what has not changed, and images that nobody has pulled or run, for so long
        #[arg(long, default_value = "1d", value_name = "TIME")]
        older_than: Seconds,
        /// Delete images too, but of each repository those that were converted last, so many
        #[arg(long, value_name = "COUNT")]
        keep_last: Option<usize>,
        /// Say what would go, and delete nothing
        #[arg(long, short = 'n')]
        dry_run: bool,
    },
}

#[derive(Args)]
struct One {
    /// A source as it was pulled, a digest or its beginning, or a label's NAME=VALUE
    image: String,
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let store = &settings.store;
    match &arguments.command {
        Command::Ls { label } => list(store, label, global)?,
        Command::Path(one) => {
            let path = find(store, &one.image)?.root().path().to_owned();
            match global.json {
                true => println!("{}", json!({"path": path})),
                false => println!("{}", path.display()),
            }
        }
        Command::Info(one) => info(&find(store, &one.image)?, global),
        Command::Rm { images } => remove(store, images, global)?,
        Command::Verify { images } => verify::run(images, global, store)?,
        Command::Extract { image, folder } => extract::run(image, folder, global, store)?,
        Command::Df => space(store, global)?,
        Command::Prune {
            older_than,
            keep_last,
            dry_run,
        } => {
            let mode = if *dry_run { Prune::Look } else { Prune::Delete };
            prune(store, Duration::from_secs(older_than.0), *keep_last, mode, global)?;
        }
    }
    Ok(exit::DONE)
}

/// The one image that `text` means: a source that it was pulled as, its digest or enough of that, or a label's `NAME=VALUE`.
pub fn find(store: &Store, text: &str) -> Result<StoredImage, Failure> {
    let images = store.images()?;
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = hex.len() >= 4 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let source: Option<Source> = super::images::source(text).ok();
    let name = source.map(|source| source.to_string());
    let named = |image: &StoredImage| image.info.names.iter().any(|known| known == text || Some(known) == name.as_ref());
    let (mut by_name, others): (Vec<_>, Vec<_>) = images.into_iter().partition(named);
    // A tag that was pulled anew names several; the newest is what it means now.
    if let Some(newest) = by_name.pop() {
        return Ok(newest);
    }
    let begins = |image: &StoredImage| is_hex && image.digest.hex().starts_with(&hex.to_ascii_lowercase());
    let is_label = text.contains('=');
    let mut meant: Vec<_> = others
        .into_iter()
        .filter(|image| begins(image) || (is_label && has_label(image, text)))
        .collect();
    match (meant.pop(), meant.len()) {
        (Some(image), 0) => Ok(image),
        (Some(_), _) if is_label => {
            let failure = Failure::message(exit::USAGE, format!("several images have the label {text}"));
            Err(failure.hint(format!("`dvrun image ls --label {text}` lists them: name one by its digest")))
        }
        (Some(_), _) => Err(Failure::message(exit::USAGE, format!("several images begin with {text}")).hint("give more of the digest")),
        (None, _) => {
            let failure = Failure::message(exit::USAGE, format!("there is no image {text} in the store"));
            Err(failure.hint("`dvrun image ls` lists what is there, `dvrun pull` fetches"))
        }
    }
}

fn list(store: &Store, labels: &[String], global: &Global) -> Result<(), Failure> {
    let mut images = store.images()?;
    images.retain(|image| labels.iter().all(|label| has_label(image, label)));
    if global.json {
        let images: Vec<_> = images.iter().map(summary).collect();
        println!("{:#}", json!(images));
        return Ok(());
    }
    for image in images {
        let size = HumanBytes(image.info.bytes).to_string();
        println!("{}  {size:>12}  {}", &image.digest.hex()[..12], image.info.names.join(" "));
    }
    Ok(())
}

/// Whether an image's configuration has the label `NAME`, or `NAME=VALUE`.
fn has_label(image: &StoredImage, wanted: &str) -> bool {
    let labels = &image.info.config.config.labels;
    match wanted.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|known| known == value),
        None => labels.contains_key(wanted),
    }
}

fn summary(image: &StoredImage) -> serde_json::Value {
    json!({"digest": image.digest, "names": image.info.names, "bytes": image.info.bytes, "files": image.info.files,
        "created": image.info.created, "labels": image.info.config.config.labels, "path": image.root().path()})
}

fn info(image: &StoredImage, global: &Global) {
    if global.json {
        println!("{:#}", json!({"path": image.root().path(), "image": image.info}));
        return;
    }
    let info = &image.info;
    println!("digest      {}", image.digest);
    for name in &info.names {
        println!("pulled as   {name}");
    }
    println!("path        {}", image.root().path().display());
    println!("content     {} in {} files", HumanBytes(info.bytes), info.files);
    if let Ok(created) = jiff::Timestamp::from_millisecond(info.created) {
        println!("converted   {created:.0} by dvrun {}", info.version);
    }
    for (name, value) in &info.config.config.labels {
        println!("label       {name}={value}");
    }
    for layer in &info.layers {
        println!("layer       {} {:>10}", layer.digest, HumanBytes(layer.size).to_string());
    }
    for note in &info.notes {
        println!("note        {note}");
    }
}

fn remove(store: &Store, images: &[String], global: &Global) -> Result<(), Failure> {
    // All are looked for before the first is deleted.
    let found = images.iter().map(|text| find(store, text)).collect::<Result<Vec<_>, _>>()?;
    let (mut removed, mut in_use) = (Vec::new(), Vec::new());
    for image in found {
        let waiting = || eprintln!("  {}: another process is at it; waiting", image.digest);
        let _lock = store.lock(&Store::image_lock(&image.digest), waiting)?;
        match store.remove_image(&image.digest)? {
            Removal::Removed => removed.push(image.digest),
            Removal::InUse => in_use.push(image.digest),
            Removal::Absent => {}
        }
    }
    if global.json {
        println!("{}", json!({"removed": removed}));
    } else if !global.quiet {
        removed.iter().for_each(|digest| eprintln!("{digest}: deleted"));
    }
    match in_use.as_slice() {
        [] => Ok(()),
        [first, ..] => {
            let failure = Failure::message(exit::INFRASTRUCTURE, format!("{first} is in use: somebody runs it"));
            Err(failure.hint("delete it when that has ended; `dvrun status` shows what runs"))
        }
    }
}

fn prune(store: &Store, age: Duration, keep_last: Option<usize>, mode: Prune, global: &Global) -> Result<(), Failure> {
    // First: their manifests and configurations go with them.
    let images = match keep_last {
        Some(keep) => store.prune_images(age, keep, mode)?,
        None => Vec::new(),
    };
    let mut freed = store.prune(age, mode)?;
    for pruned in &images {
        freed.files += pruned.space.files;
        freed.bytes += pruned.space.bytes;
    }
    if global.json {
        let images: Vec<_> = images.iter().map(|pruned| &pruned.image.digest).collect();
        let deleted = mode == Prune::Delete;
        println!(
            "{}",
            json!({"images": images, "files": freed.files, "bytes": freed.bytes, "deleted": deleted})
        );
    } else if !global.quiet {
        let done = match mode {
            Prune::Look => "would be deleted",
            Prune::Delete => "deleted",
        };
        for Pruned { image, .. } in &images {
            eprintln!("{}  {}: {done}", &image.digest.hex()[..12], image.info.names.join(" "));
        }
        eprintln!("{} files {done}, {}", freed.files, HumanBytes(freed.bytes));
    }
    Ok(())
}

fn space(store: &Store, global: &Global) -> Result<(), Failure> {
    let space = store.space()?;
    if global.json {
        let places: serde_json::Map<_, _> = space
            .iter()
            .map(|(place, space)| ((*place).to_owned(), json!({"files": space.files, "bytes": space.bytes})))
            .collect();
        println!("{}", json!({"path": store.root(), "places": places}));
        return Ok(());
    }
    println!("{}", store.root().display());
    for (place, space) in &space {
        println!("  {place:<8} {:>12}  {} files", HumanBytes(space.bytes).to_string(), space.files);
    }
    Ok(())
}
