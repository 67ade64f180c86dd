//! `dvrun image verify` and `dvrun image extract`: what is in the store, and in files, once more.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use dvrun::sif::Sif;

use super::seen::{SeenTree, assert_same, on_disk};
use super::squashfs::unsquashfs;
use crate::support::layers::*;
use crate::support::{Sandbox, checkout, finish, lane};

/// Files and folders of every mode, among them those that nobody may read.
fn image(sandbox: &Sandbox) -> String {
    let noise: Vec<u8> = (0..300_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layers = [
        vec![
            folder("bin"),
            file("bin/tool", "tool").mode(0o4755),
            file("old", "o"),
            folder("sealed").mode(0o555),
            file("sealed/secret", "s").mode(0),
            folder("closed").mode(0),
            file("closed/inside", "i").mode(0o400),
            file("odd \\ \n name", "odd"),
            device("null", 1, 3),
        ],
        vec![
            whiteout("old"),
            file("noise", &noise),
            hard_link("again", "noise"),
            symlink("sbin", "bin"),
            member(b'6', "fifo"),
            file("marked", "m").xattr("user.note", "n"),
            sparse("sparse", Sparse::Pax10, 900_000, &[(500_000, b"here")]),
        ],
    ];
    let tars: Vec<Vec<u8>> = layers.iter().map(|layer| archive(layer)).collect();
    let dir = sandbox.path().join("layout");
    layout(&dir, "t", Packing::Gzip, &tars);
    format!("oci:{}:t", dir.display())
}

fn dvrun(sandbox: &Sandbox, arguments: &[&str]) -> Command {
    let mut command = sandbox.dvrun();
    command.args(arguments);
    command
}

fn tree(sandbox: &Sandbox, name: &str) -> SeenTree {
    on_disk(&sandbox.work().join(name))
}

/// In SquashFS, times have no nanoseconds and do not go back before 1970; nothing here is older.
#[test]
fn what_is_extracted_is_what_a_folder_would_have_been() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox);
    let run = |arguments: &[&str]| finish(&mut dvrun(&sandbox, arguments)).ok();
    run(&["pull", &reference]);
    run(&["pull", &reference, "-o", "wanted", "--format", "dir"]);
    run(&["pull", &reference, "-o", "x.sif"]);
    run(&[
        "pull",
        &reference,
        "-o",
        "x.squashfs",
        "--format",
        "squashfs",
        "--compression",
        "lz4",
    ]);
    let wanted = tree(&sandbox, "wanted");
    run(&["image", "extract", "./x.squashfs", "from-squashfs"]);
    assert_same("squashfs", &tree(&sandbox, "from-squashfs"), &wanted);
    let stored = run(&["image", "path", &reference]).stdout;
    let before = on_disk(Path::new(stored.trim_end()));
    run(&["image", "extract", &reference, "from-store"]);
    assert_same("store", &tree(&sandbox, "from-store"), &wanted);
    assert_same("the store is as it was", &on_disk(Path::new(stored.trim_end())), &before);
    run(&["image", "extract", "x.sif", "from-sif"]);
    let mut from_sif = tree(&sandbox, "from-sif");
    assert!(from_sif.contains_key(&b".singularity.d/runscript"[..]));
    from_sif.retain(|path, _| wanted.contains_key(path));
    // Places to mount on made its root's and no other's time another one.
    from_sif.remove(&b""[..]);
    let mut rest = wanted;
    rest.remove(&b""[..]);
    assert_same("sif", &from_sif, &rest);
    assert_eq!(hidden(&sandbox), Vec::<String>::new());
}

#[test]
fn a_sif_of_apptainer_is_extracted_as_unsquashfs_does() {
    if !unsquashfs() {
        return;
    }
    let sandbox = Sandbox::new();
    let sif = checkout().join("tests/corpora/apptainer-1.4.5.sif");
    let offset = Sif::read(&fs::File::open(&sif).unwrap()).unwrap().primary().unwrap().offset;
    finish(dvrun(&sandbox, &["image", "extract"]).arg(&sif).arg("ours")).ok();
    let mut theirs = Command::new("unsquashfs");
    theirs.args(["-no-progress", "-quiet", "-offset", &offset.to_string(), "-dest"]);
    finish(theirs.arg(sandbox.work().join("theirs")).arg(&sif)).ok();
    assert!(tree(&sandbox, "ours").len() > 10, "there is something in it");
    assert_same("apptainer's", &tree(&sandbox, "ours"), &tree(&sandbox, "theirs"));
}

fn hidden(sandbox: &Sandbox) -> Vec<String> {
    let entries = fs::read_dir(sandbox.work()).unwrap().map(|entry| entry.unwrap().file_name());
    entries
        .filter(|name| name.as_bytes().starts_with(b"."))
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn what_cannot_be_extracted_leaves_nothing() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox);
    finish(&mut dvrun(&sandbox, &["pull", &reference, "-o", "x.sif"])).ok();
    sandbox.write("there", "mine");
    finish(&mut dvrun(&sandbox, &["image", "extract", "x.sif", "there"]))
        .exits(2)
        .complains("exists");
    finish(&mut dvrun(&sandbox, &["image", "extract", "sha256:0000", "out"]))
        .exits(2)
        .complains("no image");
    sandbox.write("text", "no image at all, but long enough to be looked at: ".repeat(10));
    finish(&mut dvrun(&sandbox, &["image", "extract", "text", "out"])).exits(2);
    let mut bytes = fs::read(sandbox.work().join("x.sif")).unwrap();
    bytes.truncate(bytes.len() - 8192);
    sandbox.write("cut.sif", &bytes);
    finish(&mut dvrun(&sandbox, &["image", "extract", "cut.sif", "out"])).complains("fetch or copy the image again");
    assert!(!sandbox.work().join("out").exists());
    assert_eq!(hidden(&sandbox), Vec::<String>::new());
}

#[test]
fn a_hole_of_a_tebibyte_stays_one() {
    const TIB: u64 = 1 << 40;
    let sandbox = Sandbox::new();
    let dir = sandbox.path().join("layout");
    let large = huge("large", Sparse::Pax10, TIB + 5, &[(TIB / 2 + 1, b"middle"), (TIB + 1, b"tail")]);
    layout(&dir, "t", Packing::Gzip, &[archive(&[large])]);
    let run = |arguments: &[&str]| finish(&mut dvrun(&sandbox, arguments)).ok();
    run(&["pull", &format!("oci:{}:t", dir.display()), "-o", "x.sif"]);
    run(&["image", "verify", "x.sif"]).says("readable");
    run(&["image", "extract", "x.sif", "out"]);
    let file = File::open(sandbox.work().join("out/large")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), TIB + 5);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    for (offset, expected) in [(TIB / 2 - 1, &b"\0\0middle\0"[..]), (TIB - 1, b"\0\0tail")] {
        let mut bytes = vec![1; expected.len()];
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes, expected, "from {offset} on");
    }
}

#[test]
fn a_file_whose_list_of_blocks_is_damaged_is_named_and_the_others_are_read() {
    let sandbox = Sandbox::new();
    let dir = sandbox.path().join("layout");
    let noise: Vec<u8> = (0..32_768_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    layout(&dir, "t", Packing::Gzip, &[archive(&[file("good", "g"), file("spoilt", noise)])]);
    let run = |arguments: &[&str]| finish(&mut dvrun(&sandbox, arguments));
    let made = ["-o", "x.squashfs", "--format", "squashfs", "--compression", "none"];
    run(&[&["pull", &*format!("oci:{}:t", dir.display())], &made[..]].concat()).ok();
    let image = sandbox.work().join("x.squashfs");
    let mut bytes = fs::read(&image).unwrap();
    // Of the inode, behind all content: one block of 128 KiB, not compressed. It becomes one of 16 MiB.
    let word = ((1_u32 << 24) | (128 << 10)).to_le_bytes();
    let at = bytes.windows(4).rposition(|four| four == word).expect("the list of blocks");
    bytes[at..at + 4].copy_from_slice(&0x00ff_ffff_u32.to_le_bytes());
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&image, bytes).unwrap();
    let said = run(&["image", "verify", "x.squashfs"]).exits(3).stdout;
    assert!(said.contains("unreadable  spoilt") && !said.contains("good"), "{said}");
}

#[test]
fn what_was_changed_in_the_store_is_named() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox);
    // Through the store's blobs, as from a registry.
    let archive = sandbox.work().join("image.tar");
    let made = Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(sandbox.path().join("layout"))
        .arg(".")
        .status();
    assert!(made.is_ok_and(|status| status.success()));
    drop(reference);
    let reference = format!("oci-archive:{}", archive.display());
    finish(&mut dvrun(&sandbox, &["pull", &reference])).ok();
    let verify = |arguments: &[&str]| finish(&mut dvrun(&sandbox, &[&["image", "verify"], arguments].concat()));
    verify(&[]).ok().says("whole");
    verify(&[&reference]).ok().says("whole");
    let images = sandbox.cache().join("v1/images");
    let stored = fs::read_dir(&images).unwrap().next().unwrap().unwrap().path();
    let rootfs = stored.join("rootfs");
    if lane("sha256sum", Command::new("sha256sum").arg("--version").output().is_ok()) && !nix::unistd::geteuid().is_root() {
        // Those that nobody may read it cannot read either.
        let said = finish(
            Command::new("sha256sum")
                .args(["--check", "--quiet", "../checksums"])
                .current_dir(&rootfs),
        );
        assert!(!said.stdout.contains("noise"), "{said:#}");
    }
    fs::write(rootfs.join("bin/tool"), "loot").unwrap();
    fs::remove_file(rootfs.join("marked")).unwrap();
    fs::write(rootfs.join("bin/more"), "more").unwrap();
    let blob = finish(&mut dvrun(&sandbox, &["image", "info", &reference, "--json"])).ok().json()["image"]["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let place = sandbox.cache().join("v1/blobs/sha256").join(&blob[7..9]).join(&blob[7..]);
    fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&place).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&place, bytes).unwrap();
    let said = verify(&[])
        .exits(3)
        .complains("is not what was stored")
        .complains("image rm")
        .stdout;
    for line in [
        "changed  bin/tool",
        "missing  marked",
        "added    bin/more",
        &format!("changed  blob {blob} (deleted)"),
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
    assert!(!place.exists(), "nothing bears a name that is not its own");
    let json = verify(&["--json"]).exits(3).json();
    assert_eq!(json[0]["whole"], false);
    // What it says to do, helps.
    finish(&mut dvrun(&sandbox, &["image", "rm", &reference])).ok();
    finish(&mut dvrun(&sandbox, &["pull", &reference])).ok();
    verify(&[]).ok();
}
