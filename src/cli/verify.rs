//! `dvrun image verify`: whether images in the store still are what was stored, and whether all of a file can be read.

use std::path::Path;

use serde_json::{Value, json};

use super::args::Global;
use super::extract::packed;
use super::failure::{Failure, exit};
use super::image::find;
use crate::image::read_all;
use crate::store::{Damage, Store, StoredImage, Verified};

/// Looks at the images that `named` means, or at all.
pub fn run(named: &[String], global: &Global, store: &Store) -> Result<(), Failure> {
    let (files, stored): (Vec<&String>, Vec<&String>) = named.iter().partition(|text| Path::new(text).is_file());
    if !files.is_empty() && !stored.is_empty() {
        let failure = Failure::message(exit::USAGE, "files and images of the store are verified apart");
        return Err(failure.hint(format!("dvrun image verify {}", files[0])));
    }
    if !files.is_empty() {
        return read_files(&files, global);
    }
    let images = match stored.as_slice() {
        [] => store.images()?,
        named => named.iter().map(|text| find(store, text)).collect::<Result<_, _>>()?,
    };
    let mut results = Vec::with_capacity(images.len());
    for image in &images {
        let waiting = || eprintln!("  {}: another process is at it; waiting", image.digest);
        let _lock = store.lock(&Store::image_lock(&image.digest), waiting)?;
        let verified = store.verify_image(image)?;
        if !global.json {
            print(image, &verified, global);
        }
        results.push(verified);
    }
    if global.json {
        let images: Vec<Value> = images
            .iter()
            .zip(&results)
            .map(|(image, verified)| as_json(image, verified))
            .collect();
        println!("{:#}", json!(images));
    }
    let damaged: Vec<&StoredImage> = images
        .iter()
        .zip(&results)
        .filter(|(_, verified)| !verified.damage.is_empty())
        .map(|(image, _)| image)
        .collect();
    let Some(first) = damaged.first() else { return Ok(()) };
    let name = first.info.names.last().map_or("IMAGE", String::as_str);
    let message = match (damaged.len(), images.len()) {
        (1, 1) => format!("{} is not what was stored", first.digest),
        (some, all) => format!("{some} of {all} images are not what was stored"),
    };
    let hint = format!(
        "`dvrun image rm {}` and `dvrun pull {name}` bring it back",
        &first.digest.to_string()[..19]
    );
    Err(Failure::message(exit::INFRASTRUCTURE, message).hint(hint))
}

/// Nothing tells what bytes a SIF or SquashFS on disk should have; whether its tables are sound and all its files can be read is what
/// can be seen.
fn read_files(paths: &[&String], global: &Global) -> Result<(), Failure> {
    let mut results = Vec::with_capacity(paths.len());
    let mut damaged = Vec::new();
    for path in paths {
        let read = read_all(&packed(Path::new(path))?);
        if !read.damaged.is_empty() {
            damaged.push(path);
        }
        if global.json {
            let told = read
                .damaged
                .iter()
                .map(|(path, error)| json!({"unreadable": path.to_string_lossy(), "why": error.to_string()}));
            results.push(json!({"path": path, "files": read.files, "whole": read.damaged.is_empty(), "damage": told.collect::<Vec<_>>()}));
            continue;
        }
        for (file, error) in &read.damaged {
            println!("{path}  unreadable  {}: {error}", file.display());
        }
        if read.damaged.is_empty() && !global.quiet {
            println!("{path}  readable, {} files", read.files);
        }
    }
    if global.json {
        println!("{:#}", json!(results));
    }
    let Some(first) = damaged.first() else { return Ok(()) };
    let failure = Failure::message(exit::INFRASTRUCTURE, format!("{first} is damaged"));
    Err(failure.hint("copy or pull it again"))
}

fn print(image: &StoredImage, verified: &Verified, global: &Global) {
    if verified.damage.is_empty() {
        if !global.quiet {
            println!("{}  whole, {} files", &image.digest.hex()[..12], verified.files);
        }
        return;
    }
    for damage in &verified.damage {
        println!("{}  {}", &image.digest.hex()[..12], told(damage));
    }
}

fn told(damage: &Damage) -> String {
    match damage {
        Damage::Changed(path) => format!("changed  {}", path.display()),
        Damage::Missing(path) => format!("missing  {}", path.display()),
        Damage::Added(path) => format!("added    {}", path.display()),
        Damage::Blob(digest) => format!("changed  blob {digest} (deleted)"),
        Damage::Unlisted => "no checksums: it was stored by an earlier version".to_owned(),
    }
}

fn as_json(image: &StoredImage, verified: &Verified) -> Value {
    let damage = verified.damage.iter().map(|damage| match damage {
        Damage::Changed(path) => json!({"changed": path.to_string_lossy()}),
        Damage::Missing(path) => json!({"missing": path.to_string_lossy()}),
        Damage::Added(path) => json!({"added": path.to_string_lossy()}),
        Damage::Blob(digest) => json!({"blob": digest}),
        Damage::Unlisted => json!("unlisted"),
    });
    json!({"digest": image.digest, "files": verified.files, "whole": verified.damage.is_empty(), "damage": damage.collect::<Vec<_>>()})
}
