//! `dvrun push`, and what others see of it.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use walkdir::WalkDir;

use super::login::{guarded, keep_login};
use crate::support::image::{gz, image, image_for, index};
use crate::support::{Registry, Sandbox, finish};

#[test]
fn an_image_is_pushed_as_it_is_and_once() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let layers = [gz(b"lower"), gz(&[7; 300_000]), gz(b"lower")];
    let image = image(&layers.each_ref().map(Vec::as_slice));
    image.write(&sandbox.work().join("layout"), "x");
    let name = format!("docker://{}/lab/pushed:1", registry.host());
    let pushed = finish(sandbox.dvrun().args(["push", "oci:layout:x", &name])).ok();
    assert!(pushed.stdout.starts_with(&image.root.to_string()), "{pushed}");
    let copy = sandbox.work().join("copy");
    finish(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false", "--insecure-policy", &name])
            .arg(format!("oci:{}:1", copy.display())),
    )
    .ok();
    for (digest, bytes) in &image.blobs {
        let path = copy.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        assert!(fs::read(path).unwrap() == *bytes, "{digest}");
    }
    // Under another tag: its blobs are there.
    let other = format!("docker://{}/lab/pushed:2", registry.host());
    let again = finish(sandbox.dvrun().args(["push", "oci:layout:x", &other])).ok();
    assert!(!again.stderr.contains("done"), "nothing was sent again: {again}");
    // From the registry to itself.
    finish(
        sandbox
            .dvrun()
            .args(["push", &name, &format!("docker://{}/lab/third:1", registry.host())]),
    )
    .ok();
    let tags = finish(sandbox.dvrun().args(["tags", &other])).ok();
    let mut tags: Vec<&str> = tags.stdout.lines().collect();
    tags.sort_unstable();
    assert_eq!(tags, ["1", "2"]);

    finish(sandbox.dvrun().args(["push", "oci:layout:x", "lab/x"]))
        .exits(2)
        .complains("docker://HOST");
    finish(sandbox.dvrun().args(["push", "oci:none:x", &name])).exits(3);
    finish(sandbox.dvrun().args(["push", "x.sif", &name])).exits(2).complains("oras://");
    finish(sandbox.dvrun().args(["push", "oci:layout:x", &format!("{name}@{}", image.root)]))
        .exits(2)
        .complains("name a tag");
}

#[test]
fn who_may_not_push_is_told_to_log_in() {
    let sandbox = Sandbox::new();
    let Some((registry, _)) = guarded(&sandbox) else { return };
    image(&[&gz(b"x"), &gz(b"y")]).write(&sandbox.work().join("layout"), "x");
    let name = format!("docker://{}/lab/new:1", registry.host());
    let push = || finish(sandbox.dvrun().args(["push", "oci:layout:x", &name]));
    push().exits(3).complains("log in");
    keep_login(&sandbox, &registry.host());
    push().ok();
    finish(sandbox.dvrun().args(["inspect", &name])).ok().says("/bin/true");
}

/// An index for two platforms with an attestation, nested once, in an archive's and a layout's manner.
#[test]
fn an_image_for_several_platforms_goes_whole() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let (amd, arm, attestation) = (
        image_for("amd64", &[&gz(b"amd")]),
        image_for("arm64", &[&gz(b"arm")]),
        image(&[b"attestation"]),
    );
    let platform = |architecture: &str| json!({"os": "linux", "architecture": architecture});
    let inner = index(&[
        (platform("arm64"), &arm),
        (json!({"os": "unknown", "architecture": "unknown"}), &attestation),
    ]);
    let whole = index(&[(platform("amd64"), &amd), (Value::Null, &inner)]);
    whole.write(&sandbox.work().join("layout"), "x");
    let name = |repository: &str| format!("docker://{}/lab/{repository}:1", registry.host());
    let pushed = finish(sandbox.dvrun().args(["push", "oci:layout:x", &name("multi")])).ok();
    assert!(pushed.stdout.starts_with(&whole.root.to_string()), "{pushed}");
    // As others see it: the same bytes under the tag, and both images.
    let raw = |name: &str| {
        finish(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", name]))
            .ok()
            .stdout
    };
    assert_eq!(raw(&name("multi")).as_bytes(), whole.blobs[&whole.root.to_string()]);
    for (platform, image) in [("linux/amd64", &amd), ("linux/arm64", &arm)] {
        let seen = finish(sandbox.dvrun().args(["inspect", "--json", "--platform", platform, &name("multi")]))
            .ok()
            .json();
        assert_eq!(seen["digest"], image.root.to_string());
        let pinned = format!("docker://{}/lab/multi@{}", registry.host(), image.root);
        let out = platform.replace('/', "-");
        finish(
            sandbox
                .dvrun()
                .args(["pull", &pinned, "--platform", platform, "--format", "oci", "-o", &out]),
        )
        .ok();
    }
    // One platform alone; and all of it from a registry to the same one, where nothing has to be sent.
    let one = finish(
        sandbox
            .dvrun()
            .args(["push", "--platform", "linux/arm64", "oci:layout:x", &name("arm")]),
    )
    .ok();
    assert!(one.stdout.starts_with(&arm.root.to_string()), "{one}");
    let fresh = Sandbox::new();
    let copied = finish(fresh.dvrun().args(["push", &name("multi"), &name("copied")])).ok();
    assert!(
        copied.stdout.starts_with(&whole.root.to_string()) && !copied.stderr.contains("done"),
        "{copied}"
    );
    assert_eq!(raw(&name("copied")), raw(&name("multi")));
    let cached: Vec<_> = WalkDir::new(fresh.cache().join("v1/blobs")).into_iter().flatten().collect();
    let layers = [&amd.layers[0], &arm.layers[0], &attestation.layers[0]];
    assert!(
        layers
            .iter()
            .all(|layer| cached.iter().all(|entry| entry.file_name() != layer.hex())),
        "the layers were taken over within the registry"
    );
    // An index whose images are not all there is not pushed by halves: its tag does not appear.
    fs::remove_file(sandbox.work().join("layout/blobs/sha256").join(arm.root.hex())).unwrap();
    finish(sandbox.dvrun().args(["push", "oci:layout:x", &name("half")]))
        .exits(3)
        .complains(&arm.root.to_string());
    finish(sandbox.dvrun().args(["inspect", &name("half")])).exits(3);
}
