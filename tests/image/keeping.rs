//! The store as its user sees it: images by label, what is deleted and what is not, and damage that heals.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::runtime::fixture::ready;
use crate::support::image::{gz, image_of};
use crate::support::layers::*;
use crate::support::{Finished, Running, Sandbox, finish};

/// The program that the containers below run.
const BUSYBOX: &str = "/bin/busybox";

/// An OCI archive, whose blobs come into the store as a registry's do, of an image with these labels.
fn image(sandbox: &Sandbox, name: &str, labels: &serde_json::Value, members: &[Member]) -> String {
    let layer = gz(&archive(members));
    let image = image_of("amd64", json!({"Labels": labels, "Entrypoint": ["/bin/sh"]}), &[&layer]);
    let folder = sandbox.path().join(format!("layout-{name}"));
    image.write(&folder, name);
    let file = sandbox.work().join(format!("{name}.tar"));
    pack(&folder, &file);
    format!("oci-archive:{}", file.display())
}

fn pack(folder: &Path, file: &Path) {
    let tar = Command::new("tar").arg("-cf").arg(file).arg("-C").arg(folder).arg(".").status();
    assert!(tar.is_ok_and(|status| status.success()));
}

fn run(sandbox: &Sandbox, arguments: &[&str]) -> Finished {
    finish(sandbox.dvrun().args(arguments))
}

fn digest(sandbox: &Sandbox, reference: &str) -> String {
    let info = run(sandbox, &["image", "info", reference, "--json"]).ok().json();
    info["image"]["manifest"].as_str().expect("a digest").to_owned()
}

fn stored(sandbox: &Sandbox, reference: &str) -> PathBuf {
    let digest = digest(sandbox, reference);
    sandbox.cache().join("v1/images").join(digest.replacen(':', "-", 1))
}

/// The images in the store, by their labels `version`.
fn versions(sandbox: &Sandbox, options: &[&str]) -> Vec<String> {
    let listed = run(sandbox, &[&["image", "ls", "--json"], options].concat()).ok().json();
    let images = listed.as_array().expect("a list").iter();
    images
        .map(|image| image["labels"]["version"].as_str().expect("a version").to_owned())
        .collect()
}

#[test]
fn images_are_found_by_their_labels() {
    let sandbox = Sandbox::new();
    for version in ["1", "2"] {
        let labels = json!({"version": version, "maintainer": "someone"});
        let reference = image(&sandbox, version, &labels, &[file("version", version)]);
        run(&sandbox, &["pull", &reference]).ok();
    }
    assert_eq!(versions(&sandbox, &[]).len(), 2);
    assert_eq!(versions(&sandbox, &["--label", "maintainer"]).len(), 2);
    assert_eq!(versions(&sandbox, &["--label", "version=2", "--label", "maintainer"]), ["2"]);
    assert!(versions(&sandbox, &["--label", "version=3"]).is_empty());
    assert!(versions(&sandbox, &["--label", "nothing"]).is_empty());
    let path = run(&sandbox, &["image", "path", "version=2"]).ok().stdout;
    assert_eq!(fs::read(Path::new(path.trim_end()).join("version")).unwrap(), b"2");
    run(&sandbox, &["image", "info", "version=1"]).ok().says("maintainer=someone");
    run(&sandbox, &["image", "rm", "maintainer=someone"])
        .exits(2)
        .complains("several images have the label");
    run(&sandbox, &["image", "rm", "version=3"])
        .exits(2)
        .complains("no image version=3");
    run(&sandbox, &["image", "rm", "version=1"]).ok();
    assert_eq!(versions(&sandbox, &[]), ["2"]);
}

#[test]
fn the_last_of_a_repository_are_kept() {
    let sandbox = Sandbox::new();
    // Three images of one archive, one after the other.
    for version in ["1", "2", "3"] {
        let reference = image(&sandbox, "lab", &json!({"version": version}), &[file("version", version)]);
        run(&sandbox, &["pull", &reference]).ok();
    }
    let prune = |options: &[&str]| run(&sandbox, &[&["image", "prune"], options].concat()).ok();
    prune(&["--keep-last", "1"]);
    assert_eq!(versions(&sandbox, &[]).len(), 3, "they are younger than a day");
    // Used long ago, all but the first.
    let mut aged = Vec::new();
    for image in fs::read_dir(sandbox.cache().join("v1/images")).unwrap() {
        aged.push(image.unwrap().path());
    }
    let old = SystemTime::now() - Duration::from_secs(40 * 86_400);
    let first = run(&sandbox, &["image", "info", "version=1", "--json"]).ok().json();
    let first = first["path"].as_str().unwrap().to_owned();
    for folder in aged.iter().filter(|folder| !first.starts_with(folder.to_str().unwrap())) {
        fs::File::open(folder.join("in-use")).unwrap().set_modified(old).unwrap();
    }
    let month = ["--older-than", "30d", "--keep-last"];
    let said = prune(&[&month[..], &["1", "--dry-run", "--json"]].concat()).json();
    assert_eq!(said["images"], json!([digest(&sandbox, "version=2")]));
    assert_eq!(said["deleted"], false);
    prune(&["--older-than", "30d"]);
    assert_eq!(versions(&sandbox, &[]).len(), 3, "images go only where it is said how many stay");
    prune(&[&month[..], &["1"]].concat()).complains("lab.tar: deleted");
    assert_eq!(versions(&sandbox, &[]), ["1", "3"]);
    prune(&[&month[..], &["0"]].concat());
    assert_eq!(versions(&sandbox, &[]), ["1"], "it was used today");
}

#[test]
fn an_image_that_runs_is_not_removed() {
    if !ready() {
        return;
    }
    let sandbox = Sandbox::new();
    let busybox = fs::read(BUSYBOX).expect("it is there");
    let members = [
        folder("bin"),
        file("bin/busybox", busybox).mode(0o755),
        symlink("bin/sh", "busybox"),
    ];
    let reference = image(&sandbox, "lab", &json!({"version": "1"}), &members);
    run(&sandbox, &["pull", &reference]).ok();
    let mark = sandbox.work().join("out/started");
    fs::create_dir(sandbox.work().join("out")).unwrap();
    let mut exec = sandbox.dvrun();
    exec.args(["exec", "--bind", "out:/out", &reference, "--", "/bin/busybox", "sh", "-c"])
        .arg("echo > /out/started; until [ -e /out/go ]; do /bin/busybox sleep 0.1; done; /bin/busybox echo still here");
    let mut running = Running::start(&mut exec);
    running.reaches("its program", || mark.exists());
    run(&sandbox, &["image", "rm", &reference]).exits(3).complains("is in use");
    let stored = stored(&sandbox, &reference);
    let old = SystemTime::now() - Duration::from_secs(40 * 86_400);
    fs::File::open(stored.join("in-use")).unwrap().set_modified(old).unwrap();
    run(&sandbox, &["image", "prune", "--older-than", "30d", "--keep-last", "0"]).ok();
    assert!(stored.join("rootfs/bin/busybox").exists());
    sandbox.write("out/go", "");
    let finished = running.finish();
    assert_eq!(finished.stdout, "still here\n");
    run(&sandbox, &["image", "rm", &reference]).ok();
    assert!(versions(&sandbox, &[]).is_empty());
}

/// Changes a byte in the middle.
fn damage(path: &Path) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

fn layer(sandbox: &Sandbox, reference: &str) -> PathBuf {
    let info = run(sandbox, &["image", "info", reference, "--json"]).ok().json();
    let digest = info["image"]["layers"][0]["digest"].as_str().expect("a layer").to_owned();
    sandbox.cache().join("v1/blobs/sha256").join(&digest[7..9]).join(&digest[7..])
}

#[test]
fn a_layer_that_was_damaged_in_the_store_is_fetched_again() {
    let sandbox = Sandbox::new();
    let noise: Vec<u8> = (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let reference = image(&sandbox, "lab", &json!({"version": "1"}), &[file("noise", noise)]);
    run(&sandbox, &["pull", &reference]).ok();
    run(&sandbox, &["pull", &reference, "-o", "whole.sif"]).ok();
    let layer = layer(&sandbox, &reference);
    damage(&layer);
    run(&sandbox, &["pull", &reference, "-o", "again.sif"])
        .ok()
        .complains("was damaged in the store; it is fetched again");
    let read = |name: &str| fs::read(sandbox.work().join(name)).unwrap();
    assert_eq!(read("again.sif"), read("whole.sif"));
    // Into the store likewise.
    damage(&layer);
    run(&sandbox, &["image", "rm", &reference]).ok();
    run(&sandbox, &["pull", &reference]).ok();
    run(&sandbox, &["image", "verify"]).ok().says("whole");
}

#[test]
fn a_layer_that_is_damaged_at_its_source_is_an_error() {
    let sandbox = Sandbox::new();
    let tar = archive(&[file("a", "a")]);
    let cut = gz(&tar[..tar.len() / 2 - 100]);
    let image = image_of("amd64", json!({}), &[&cut]);
    let folder = sandbox.path().join("layout");
    image.write(&folder, "lab");
    let archive = sandbox.work().join("lab.tar");
    pack(&folder, &archive);
    let reference = format!("oci-archive:{}", archive.display());
    let failed = run(&sandbox, &["pull", &reference]).exits(3);
    assert!(!failed.stderr.contains("fetched again"), "{failed:#}");
}

#[test]
fn layers_lie_where_the_configuration_says_while_they_are_converted() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox, "lab", &json!({"version": "1"}), &[file("a", "a")]);
    sandbox.config("spool: elsewhere");
    let place = sandbox.path().join("elsewhere");
    run(&sandbox, &["pull", &reference])
        .exits(3)
        .complains(&format!("cannot make a scratch file in {}", place.display()));
    fs::create_dir(&place).unwrap();
    run(&sandbox, &["pull", &reference]).ok();
    run(&sandbox, &["pull", &reference, "-o", "x.sif"]).ok();
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "nothing stays there");
}

#[test]
fn damage_in_a_file_is_seen() {
    let sandbox = Sandbox::new();
    // It compresses, but not to nothing.
    let mut random = fastrand::Rng::with_seed(3);
    let noise: Vec<u8> = (0..400_000).map(|_| random.u8(..32)).collect();
    let members = [file("first", "1"), file("noise", noise)];
    let reference = image(&sandbox, "lab", &json!({"version": "1"}), &members);
    // Its blocks have sums of their own; those of zstd have none.
    run(&sandbox, &["pull", &reference, "-o", "x.sif", "--compression", "gzip"]).ok();
    run(&sandbox, &["image", "verify", "x.sif"]).ok().says("readable");
    // As an image of the store it has a checksum.
    run(&sandbox, &["pull", "./x.sif"]).ok();
    run(&sandbox, &["image", "verify"]).ok().says("whole, 1 files");
    let path = sandbox.work().join("x.sif");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    damage(&path);
    fs::File::open(&path).unwrap().set_modified(before).unwrap();
    run(&sandbox, &["image", "verify"]).exits(3).says("changed").says("x.sif");
    // Without one, only what cannot be read is seen: here a compressed block.
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xff);
    sandbox.write("y.sif", &bytes);
    run(&sandbox, &["image", "verify", "y.sif"]).exits(3).says("unreadable  noise");
    run(&sandbox, &["image", "verify", "x.sif", "version=1"])
        .exits(2)
        .complains("verified apart");
}
