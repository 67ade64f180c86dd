//! Images that are one file, or a folder, already: `oras://`, `FILE.sif`, a root folder; wherever an image is asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use dvrun::oci::{Digest, Platform};

use crate::support::image::{gz, image};
use crate::support::{Registry, Sandbox, Valve, checkout, finish};

/// The quickstart's image, with `busybox`, as the file `tools.sif` in the work folder.
fn tools(sandbox: &Sandbox) -> std::path::PathBuf {
    sandbox.copy(&checkout().join("workflows/quickstart/image"), "image");
    finish(sandbox.dvrun().args(["pull", "oci:image:1.0", "-o", "tools.sif", "-q"])).ok();
    sandbox.work().join("tools.sif")
}

fn flow(sandbox: &Sandbox, source: &str) -> std::path::PathBuf {
    let text = format!(
        "version: 1\nname: f\nimages: {{x: \"{source}\"}}\n\
         stages: {{a: {{image: x, run: 'busybox | head -n 1 > out/said', binds: ['./out:/out'], outputs: [out/said]}}}}\n"
    );
    sandbox.write("flow.yaml", text.replace("> out/said", "> /out/said"))
}

#[test]
fn a_sif_file_goes_and_comes_back() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let bytes = fs::read(tools(&sandbox)).unwrap();
    let name = format!("oras://{}/lab/tools-sif:1", registry.host());
    let pushed = finish(sandbox.dvrun().args(["push", "tools.sif", &name])).ok();
    let raw = finish(
        Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(name.replace("oras", "docker")),
    )
    .ok();
    let manifest = raw.json();
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.sylabs.sif.layer.v1.sif");
    assert_eq!(layer["digest"], Digest::sha256(&bytes).to_string());
    assert_eq!(layer["annotations"]["org.opencontainers.image.title"], "tools.sif");
    assert!(
        pushed.stdout.starts_with(&Digest::sha256(raw.stdout.as_bytes()).to_string()),
        "{pushed}"
    );

    finish(sandbox.dvrun().args(["pull", &name, "-o", "back.sif"])).ok();
    let back = sandbox.work().join("back.sif");
    assert!(fs::read(&back).unwrap() == bytes);
    assert_eq!(fs::metadata(&back).unwrap().permissions().mode() & 0o777, 0o755);
    finish(sandbox.dvrun().args(["pull", &name, "-o", "back.sif"]))
        .exits(2)
        .complains("exists");
    // The file system alone.
    finish(sandbox.dvrun().args(["pull", &name, "-o", "back.sqfs", "--format", "squashfs"])).ok();
    assert_eq!(&fs::read(sandbox.work().join("back.sqfs")).unwrap()[..4], b"hsqs");
    for (format, why) in [("dir", "dvrun image extract"), ("oci", "not an image of layers")] {
        let refused = finish(sandbox.dvrun().args(["pull", &name, "-o", "no", "--format", format]));
        assert!(!refused.status.success(), "{refused}");
        refused.complains(why);
        assert!(!sandbox.work().join("no").exists());
    }
    // From one repository to another.
    let other = name.replace("tools-sif", "other");
    finish(sandbox.dvrun().args(["push", &name, &other])).ok();
    finish(sandbox.dvrun().args(["tags", &other.replace("oras", "docker")]))
        .ok()
        .says("1\n");

    image(&[&gz(b"x")]).write(&sandbox.work().join("layout"), "x");
    let image = format!("{}/lab/image:1", registry.host());
    finish(sandbox.dvrun().args(["push", "oci:layout:x", &format!("docker://{image}")])).ok();
    finish(sandbox.dvrun().args(["pull", &format!("oras://{image}"), "-o", "no.sif"]))
        .exits(3)
        .complains("not a SIF");
    assert!(!sandbox.work().join("no.sif").exists());
    finish(sandbox.dvrun().args(["push", "oci:layout:x", &format!("oras://{image}")]))
        .exits(2)
        .complains("docker://");
    sandbox.write("no.sif", "nonsense");
    finish(sandbox.dvrun().args(["push", "no.sif", &format!("oras://{image}")]))
        .exits(2)
        .complains("no SIF");
    finish(sandbox.dvrun().args(["push", "tools.sif", &format!("docker://{image}")]))
        .exits(2)
        .complains("oras://");
}

#[test]
fn a_registrys_sif_file_is_looked_at_run_and_kept() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let size = fs::metadata(tools(&sandbox)).unwrap().len();
    let valve = Valve::slow(registry.port(), 1 << 30);
    let name = format!("oras://127.0.0.1:{}/lab/tools-sif:1", valve.port());
    finish(sandbox.dvrun().args(["push", "tools.sif", &name])).ok();

    let before = valve.passed();
    let shown = finish(sandbox.dvrun().args(["inspect", &name])).ok();
    let own = finish(sandbox.dvrun().args(["inspect", "tools.sif"])).ok();
    let facts = |text: &str| text.split_once("platform").map(|(_, rest)| rest.to_owned());
    assert_eq!(facts(&shown.stdout), facts(&own.stdout));
    assert!(facts(&own.stdout).is_some(), "{own}");
    let moved = valve.passed() - before;
    assert!(moved < size && moved < 300_000, "{moved} bytes to look at {size}");
    let json = finish(sandbox.dvrun().args(["inspect", "--json", &name])).ok().json();
    assert_eq!((&json["source"], &json["format"]), (&name.as_str().into(), &"sif".into()));
    let raw = finish(sandbox.dvrun().args(["inspect", "--raw", &name])).ok();
    assert_eq!(json["digest"], Digest::sha256(raw.stdout.as_bytes()).to_string());
    finish(sandbox.dvrun().args(["inspect", &name.replace(":1", ":2")]))
        .exits(3)
        .complains("other tags, 1");

    let said = finish(sandbox.dvrun().args(["exec", &name, "--", "busybox", "echo", "hello"])).ok();
    assert_eq!(said.stdout, "hello\n");
    let path = finish(sandbox.dvrun().args(["image", "path", &name])).ok().stdout;
    assert!(path.trim_end().ends_with("/image.sif"), "{path}");
    finish(sandbox.dvrun().args(["image", "ls"])).ok().says(&name);
    drop(registry);
    finish(sandbox.dvrun().args(["exec", "--offline", &name, "--", "busybox", "true"])).ok();

    let file = flow(&sandbox, &name);
    let plan = finish(sandbox.dvrun().args(["plan", "--offline", "--json"]).arg(&file)).ok().json();
    assert!(plan.to_string().contains(json["digest"].as_str().unwrap()), "{plan}");
    finish(sandbox.dvrun().args(["run", "--offline"]).arg(&file)).ok();
    assert!(sandbox.read("out/said").contains("BusyBox"));
    finish(sandbox.dvrun().args(["image", "rm", &name])).ok();
    assert!(!Path::new(path.trim_end()).exists());
}

#[test]
fn a_sif_file_for_another_processor_is_told_before_it_is_fetched() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let mut bytes = fs::read(tools(&sandbox)).unwrap();
    let host = Platform::host().to_string();
    // SIF's numbers of processors.
    let (other, number) = match host.as_str() {
        "linux/arm64" => ("linux/amd64", b"02"),
        _ => ("linux/arm64", b"04"),
    };
    bytes[0x2d..0x2f].copy_from_slice(number);
    sandbox.write("other.sif", &bytes);
    let valve = Valve::slow(registry.port(), 1 << 30);
    let name = format!("oras://127.0.0.1:{}/lab/other:1", valve.port());
    finish(sandbox.dvrun().args(["push", "other.sif", &name])).ok();

    let wants = [
        &["pull", &name][..],
        &["pull", &name, "-o", "no.sif"],
        &["exec", &name, "--", "true"],
    ];
    let before = valve.passed();
    for arguments in wants {
        let refused = finish(sandbox.dvrun().args(arguments));
        assert!(!refused.status.success(), "{refused}");
        refused.complains(&name).complains(&host).complains(other).complains("platform");
    }
    let moved = valve.passed() - before;
    assert!(moved < bytes.len() as u64 / 2, "{moved} bytes to see what {} are for", bytes.len());
    assert!(!sandbox.work().join("no.sif").exists());

    // Who wants it gets it; it is there now, and still not for this host.
    finish(sandbox.dvrun().args(["pull", "--platform", other, &name])).ok();
    finish(sandbox.dvrun().args(["pull", "--platform", other, &name, "-o", "back.sif"])).ok();
    assert!(fs::read(sandbox.work().join("back.sif")).unwrap() == bytes);
    for arguments in wants {
        let refused = finish(sandbox.dvrun().args(arguments));
        assert!(!refused.status.success(), "{refused}");
        refused.complains(&name).complains(&host).complains(other);
    }
    assert!(!sandbox.work().join("no.sif").exists());
}

#[test]
fn an_image_in_the_store_is_for_its_own_platform_alone() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    registry.push_oci(&checkout().join("workflows/quickstart/image"), "1.0", "lab/one:1");
    let image = format!("docker://{}/lab/one:1", registry.host());
    let pull = |platform: &str| finish(sandbox.dvrun().args(["pull", "--platform", platform, &image]));
    let refused = || {
        pull("linux/arm64").exits(3).complains("linux/amd64");
    };
    refused();
    pull("linux/amd64").ok();
    // Now that it is there.
    refused();
    pull("linux/amd64").ok();
}

#[test]
fn what_fails_below_oras_says_oras() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    tools(&sandbox);
    sandbox.config("network: {attempts: 1}\n");
    // Nobody listens on the first port.
    let silent = "oras://127.0.0.1:1/lab/x:1".to_owned();
    let missing = format!("oras://{}/lab/none:1", registry.host());
    for (arguments, name) in [
        (&["pull", &missing][..], &missing),
        (&["inspect", &missing], &missing),
        (&["pull", &silent], &silent),
        (&["push", "tools.sif", &silent], &silent),
    ] {
        let failed = finish(sandbox.dvrun().args(arguments)).exits(3).complains(name);
        assert!(!failed.stderr.contains("docker://"), "{failed}");
    }
}

#[test]
fn a_file_or_a_folder_is_an_image_of_a_workflow() {
    let sandbox = Sandbox::new();
    let sif = tools(&sandbox);
    finish(
        sandbox
            .dvrun()
            .args(["pull", "oci:image:1.0", "-o", "root", "--format", "dir", "-q"]),
    )
    .ok();
    for source in ["tools.sif", "./tools.sif", "./root"] {
        let file = flow(&sandbox, source);
        finish(sandbox.dvrun().arg("run").arg(&file)).ok();
        assert!(sandbox.read("out/said").contains("BusyBox"), "{source}");
        let again = finish(sandbox.dvrun().args(["plan", "--json"]).arg(&file)).ok();
        assert!(!again.stdout.contains("oci:"), "{again}");
    }
    // The same file by another name is the same image; another file is another.
    let file = flow(&sandbox, "tools.sif");
    let digest = |file: &Path| {
        let plan = finish(sandbox.dvrun().args(["plan", "--json"]).arg(file)).ok();
        let digest = Digest::sha256(&fs::read(&sif).unwrap());
        assert!(plan.stdout.contains(&digest.to_string()), "{plan}");
        digest
    };
    let first = digest(&file);
    finish(
        sandbox
            .dvrun()
            .args(["pull", "oci:image:1.0", "-o", "other.sif", "--compression", "gzip:1", "-q"]),
    )
    .ok();
    fs::rename(sandbox.work().join("other.sif"), &sif).unwrap();
    assert_ne!(digest(&file), first);
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();

    // In the store it takes no space but its description.
    finish(sandbox.dvrun().args(["image", "path", "tools.sif"]))
        .ok()
        .says(&sif.display().to_string());
    fs::remove_file(&sif).unwrap();
    let gone = finish(sandbox.dvrun().arg("run").arg(&file)).exits(3);
    gone.complains("tools.sif");
    sandbox.write("tools.sif", vec![0; 8192]);
    finish(sandbox.dvrun().arg("plan").arg(&file)).exits(3).complains("SIF or SquashFS");
    finish(sandbox.dvrun().args(["exec", "tools.sif", "--", "true"]))
        .exits(2)
        .complains("SIF or SquashFS");
}
