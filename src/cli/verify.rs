//! `dvrun image verify`: whether images in the store still are what was stored.

use serde_json::{Value, json};

use super::args::Global;
use super::failure::{Failure, exit};
use super::image::find;
use crate::store::{Damage, Store, StoredImage, Verified};

/// Looks at the images that `named` means, or at all.
pub fn run(named: &[String], global: &Global, store: &Store) -> Result<(), Failure> {
    let images = match named {
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
