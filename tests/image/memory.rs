//! What a conversion takes of memory for each file that is in the image.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::support::layers::*;
use crate::support::{Sandbox, assert_ordinary_user};

/// Of each layer.
const FOLDERS: usize = 250;

/// An image of four layers with so many files each, of which half are in no other layer, and no two have the same content.
fn image(sandbox: &Sandbox, files: usize) -> String {
    let tars = (0..4).map(|layer| {
        let members = (0..files).map(|number| {
            let place = format!("usr/lib/package-{:03}", number % FOLDERS);
            match number % 2 {
                0 => file(format!("{place}/module_{number}.py"), format!("of layer {layer}: {number}")),
                _ => file(format!("{place}/{layer}/module_{number}.py"), format!("of layer {layer}: {number}")),
            }
        });
        archive(&members.collect::<Vec<_>>())
    });
    let dir = sandbox.path().join(format!("layout-{files}"));
    layout(&dir, "t", Packing::Gzip, &tars.collect::<Vec<_>>());
    format!("oci:{}:t", dir.display())
}

/// The most memory that a pull of this image has at once, in bytes.
fn peak(sandbox: &Sandbox, reference: &str, format: &str) -> u64 {
    let out = format!("out-{}", fastrand::u32(..));
    let mut pull = sandbox.dvrun();
    pull.args(["--quiet", "pull", reference, "-o", &out, "--format", format]);
    let mut child = pull.stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        // It never falls, so that nothing between two looks is missed.
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = kib.unwrap_or(0).max(peak);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success(), "{status}");
    peak << 10
}

/// A file takes less than twice what its inode and its name take by themselves.
#[test]
fn memory_hardly_grows_with_an_image() {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    let (few, many) = (image(&sandbox, 500), image(&sandbox, 50_000));
    let files = 4 * (50_000 - 500);
    let grown = peak(&sandbox, &many, "sif").saturating_sub(peak(&sandbox, &few, "sif"));
    assert!(grown / files < 200, "{} bytes a file", grown / files);
}
