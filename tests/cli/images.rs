//! Images at hand: listed, looked into, deleted.

use std::path::Path;

use crate::support::{Sandbox, checkout, finish};

const DIGEST: &str = "sha256:cbb4479c7903c70b5531aaa6f8cf6c2ae8be57b118d0ac442a45b2f633d4e63d";

#[test]
fn an_image_of_the_store_is_listed_found_and_deleted() {
    let sandbox = Sandbox::new();
    let layout = sandbox.copy(&checkout().join("workflows/quickstart/image"), "image");
    let call = |arguments: &[&str]| finish(sandbox.dvrun().args(arguments));
    call(&["pull", "oci:image:1.0", "-q"]).ok();
    let name = format!("oci:{}:1.0", layout.display());
    call(&["image", "ls"]).ok().says(&name).says("cbb4479c7903 ");
    let list = call(&["image", "ls", "--json"]).json();
    assert_eq!((&list[0]["digest"], &list[0]["names"][0]), (&DIGEST.into(), &name.as_str().into()));
    let path = call(&["image", "path", "oci:image:1.0"]).ok().stdout;
    assert!(Path::new(path.trim_end()).join("bin/busybox").is_file());
    for text in [DIGEST, "cbb4", "sha256:CBB4479c", &name] {
        assert_eq!(call(&["image", "path", text]).ok().stdout, path, "{text}");
    }
    for text in ["cbb", "cbb5", "sha256:", "oci:other:1.0"] {
        call(&["image", "path", text])
            .exits(2)
            .complains(&format!("there is no image {text} in the store"));
    }
    call(&["image", "info", "cbb4"])
        .ok()
        .says("content     1.89 MiB in 81 files")
        .says("layer       sha256:1a91bb95");
    assert_eq!(call(&["apps", "oci:image:1.0"]).ok().stdout, "call\nevaluate\n");
    // One that is not there keeps the other.
    call(&["image", "rm", "cbb4", "nosuch"]).exits(2);
    call(&["image", "path", "cbb4"]).ok();
    call(&["image", "rm", "cbb4"]).ok().complains(&format!("{DIGEST}: deleted"));
    assert_eq!(call(&["image", "ls"]).ok().stdout, "");
    sandbox.write("other.yaml", "cache: elsewhere\n");
    let elsewhere = crate::support::dvrun()
        .current_dir(sandbox.work())
        .env_remove("DVRUN_CACHE")
        .args(["image", "df", "--config", "other.yaml"])
        .output();
    let said = String::from_utf8(elsewhere.expect("the binary starts").stdout).expect("it is text");
    assert!(
        said.starts_with(&sandbox.work().join("elsewhere/v1").display().to_string()),
        "{said}"
    );
    assert!(!Path::new(path.trim_end()).exists());
}

#[test]
fn inspect_knows_its_config_blob_from_the_configuration_file() {
    let sandbox = Sandbox::new();
    sandbox.copy(&checkout().join("workflows/quickstart/image"), "image");
    let inspect = |arguments: &[&str]| finish(sandbox.dvrun().args(["inspect", "oci:image:1.0"]).args(arguments)).ok();
    assert_eq!(inspect(&["--json"]).json()["digest"], DIGEST);
    assert_eq!(inspect(&["--config"]).json()["os"], "linux");
    assert_eq!(inspect(&["--raw"]).json()["schemaVersion"], 2);
    inspect(&[]).says("workdir     /opt\n");
}

#[test]
fn completions_and_the_manual_know_every_command() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = finish(sandbox.dvrun().args(["completions", shell])).ok().stdout;
        for command in ["submit", "image", "prune"] {
            assert!(text.contains(command), "{shell}: {command}");
        }
        assert!(!text.contains("__task"), "{shell} completes what is not for people");
    }
    finish(sandbox.dvrun().arg("man")).ok().says(".TH dvrun");
    let folder = sandbox.work().join("man1");
    std::fs::create_dir(&folder).expect("the sandbox is writable");
    finish(sandbox.dvrun().args(["man", "--into", "man1"])).ok();
    for page in ["dvrun.1", "dvrun-submit.1", "dvrun-image-prune.1"] {
        assert!(folder.join(page).is_file(), "{page}");
    }
    assert!(!folder.join("dvrun-__task.1").exists());
}
