//! `dvrun push`, and what others see of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use dvrun::oci::Digest;

use super::login::{guarded, keep_login};
use crate::support::image::{gz, image};
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
}

#[test]
fn a_sif_file_goes_and_comes_back() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    sandbox.write("tools.sif", &bytes);
    let name = format!("oras://{}/lab/tools-sif:1", registry.host());
    finish(sandbox.dvrun().args(["push", "tools.sif", &name])).ok();
    let raw = finish(
        Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(name.replace("oras", "docker")),
    );
    let manifest = raw.ok().json();
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.sylabs.sif.layer.v1.sif");
    assert_eq!(layer["digest"], Digest::sha256(&bytes).to_string());
    assert_eq!(layer["annotations"]["org.opencontainers.image.title"], "tools.sif");

    finish(sandbox.dvrun().args(["pull", &name, "-o", "back.sif"])).ok();
    let back = sandbox.work().join("back.sif");
    assert!(fs::read(&back).unwrap() == bytes);
    assert_eq!(fs::metadata(&back).unwrap().permissions().mode() & 0o777, 0o755);
    finish(sandbox.dvrun().args(["pull", &name, "-o", "back.sif"]))
        .exits(2)
        .complains("exists");

    image(&[&gz(b"x")]).write(&sandbox.work().join("layout"), "x");
    let image = format!("{}/lab/image:1", registry.host());
    finish(sandbox.dvrun().args(["push", "oci:layout:x", &format!("docker://{image}")])).ok();
    finish(sandbox.dvrun().args(["pull", &format!("oras://{image}"), "-o", "no.sif"]))
        .exits(3)
        .complains("not a SIF");
    assert!(!sandbox.work().join("no.sif").exists());
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
