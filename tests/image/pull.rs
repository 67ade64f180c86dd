//! `dvrun pull -o`: a file or a folder of the user's, whole or not at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::layers::*;
use crate::support::{Sandbox, finish, lane};

/// An image of some 300 KB that nothing makes smaller; its layout's reference.
fn image(sandbox: &Sandbox) -> String {
    let noise: String = std::iter::repeat_with({
        let mut random = fastrand::Rng::with_seed(3);
        move || random.alphanumeric()
    })
    .take(400_000)
    .collect();
    let layers = [
        vec![folder("bin"), file("bin/tool", "tool").mode(0o755), file("old", "o")],
        vec![whiteout("old"), file("noise", &noise), symlink("sbin", "bin")],
    ];
    let tars: Vec<Vec<u8>> = layers.iter().map(|layer| archive(layer)).collect();
    let dir = sandbox.path().join("layout");
    layout(&dir, "t", Packing::Gzip, &tars);
    format!("oci:{}:t", dir.display())
}

fn pull(sandbox: &Sandbox, reference: &str, arguments: &[&str]) -> Command {
    let mut command = sandbox.dvrun();
    command.args(["pull", reference]).args(arguments);
    command
}

fn there(program: &str) -> bool {
    Command::new(program)
        .arg("-version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

fn names(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_sif_is_written_unless_another_format_is_named() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox);
    finish(&mut pull(&sandbox, &reference, &["-o", "a.sif"])).ok();
    finish(&mut pull(&sandbox, &reference, &["-o", "b.sif", "--compression", "zstd"])).ok();
    finish(&mut pull(&sandbox, &reference, &["-o", "c.sif", "--compression", "gzip:9"])).ok();
    let bytes = |name: &str| fs::read(sandbox.work().join(name)).unwrap();
    let sif = bytes("a.sif");
    assert_eq!(&sif[32..42], b"SIF_MAGIC\0");
    assert!(sif == bytes("b.sif"), "the same image gives the same file");
    assert!(sif != bytes("c.sif"));
    let mode = fs::metadata(sandbox.work().join("a.sif")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    assert_eq!(fs::read_dir(sandbox.cache().join("v1/scratch")).unwrap().count(), 0);

    for compression in ["none", "gzip", "zstd:19", "lz4", "xz:1"] {
        let path = sandbox.work().join("root.squashfs");
        finish(&mut pull(
            &sandbox,
            &reference,
            &["-o", "root.squashfs", "--format", "squashfs", "--compression", compression],
        ))
        .ok();
        assert!(bytes("root.squashfs").starts_with(b"hsqs"));
        if lane("unsquashfs is not installed", there("unsquashfs")) {
            let listed = finish(Command::new("unsquashfs").args(["-l", "-d", ""]).arg(&path)).ok().stdout;
            let mut listed: Vec<&str> = listed.lines().filter(|line| line.starts_with('/')).collect();
            listed.sort_unstable();
            assert_eq!(listed, ["/bin", "/bin/tool", "/noise", "/sbin"], "{compression}");
        }
        fs::remove_file(path).unwrap();
    }
    finish(&mut pull(&sandbox, &reference, &["-o", "root", "--format", "dir"])).ok();
    assert_eq!(bytes("root/bin/tool"), b"tool");
    assert!(!sandbox.work().join("root/old").exists());
    assert!(!sandbox.work().join("root/.singularity.d").exists());
    assert_eq!(names(&sandbox.work()).len(), 4, "three SIFs and a folder, nothing beside them");
}

#[test]
fn what_makes_no_sense_is_said_before_anything_is_fetched() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox);
    sandbox.write("there", "mine");
    finish(&mut pull(&sandbox, &reference, &["-o", "there"]))
        .exits(2)
        .complains("exists");
    assert_eq!(sandbox.read("there"), "mine");
    finish(&mut pull(&sandbox, &reference, &["--format", "sif"]))
        .exits(2)
        .complains("--output");
    finish(&mut pull(&sandbox, &reference, &["-o", "x", "--compression", "zstd:99"]))
        .exits(2)
        .complains("zstd:1 to zstd:22");
    assert!(!sandbox.work().join("x").exists());
    assert_eq!(fs::read_dir(sandbox.cache()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox);
    let small = sandbox.path().join("small");
    fs::create_dir(&small).unwrap();
    // A disk of 200 KB, in namespaces of its own.
    let mounted = |script: &str| {
        let mut command = Command::new("unshare");
        let script = format!(
            "mount -t tmpfs -o size=200k none '{}' && cd '{}' && {script}",
            small.display(),
            small.display()
        );
        command.args(["-rm", "sh", "-c", &script]);
        command
    };
    let possible = mounted("true")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !lane("user namespaces with mounts are not to be had", possible) {
        return;
    }
    for format in ["sif", "squashfs", "dir"] {
        let pull = pull(&sandbox, &reference, &["-o", "out", "--format", format]);
        let words: Vec<String> = [pull.get_program()]
            .into_iter()
            .chain(pull.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let mut command = mounted(&format!("{{ {}; echo status $?; ls -A; }}", words.join(" ")));
        for (name, value) in pull.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let finished = finish(&mut command)
            .ok()
            .complains("No space left on device")
            .complains("free some space");
        assert_eq!(finished.stdout, "status 3\n", "{format}");
    }
    assert_eq!(fs::read_dir(sandbox.cache().join("v1/scratch")).unwrap().count(), 0);
}

#[test]
fn a_workflows_apps_are_written_into_the_file() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox);
    let workflow = |word: &str| {
        let apps = format!("{{say: {{help: Says it., run: [/bin/tool, \"{word}\"], env: {{A: \"b $c\"}}}}}}");
        let text = format!(
            "version: 1\nname: x\nparams: {{n: 3}}\nimages:\n  t: {{source: '{reference}', apps: {apps}}}\nstages:\n  s: {{image: t, app: say}}\n"
        );
        sandbox.write("x.yaml", text);
    };
    workflow("it's ${{ params.n }}");
    finish(&mut pull(&sandbox, "t", &["--file", "x.yaml", "-o", "x.sif"])).ok();
    let listed = finish(sandbox.dvrun().args(["apps", "x.sif"])).ok();
    assert_eq!(listed.stdout, "say\n");
    finish(sandbox.dvrun().args(["image", "extract", "x.sif", "x"])).ok();
    let script = sandbox.read("x/scif/apps/say/scif/runscript");
    assert!(script.contains(r#"'/bin/tool' 'it'"'"'s 3' "$@""#), "{script}");
    assert_eq!(sandbox.read("x/scif/apps/say/scif/runscript.help"), "Says it.\n");
    finish(&mut pull(&sandbox, "u", &["--file", "x.yaml", "-o", "y.sif"]))
        .exits(2)
        .complains("no image `u`")
        .complains("it has t");
    workflow("${{ array.index }}");
    finish(&mut pull(&sandbox, "t", &["--file", "x.yaml", "-o", "y.sif"]))
        .exits(2)
        .complains("app `say`");
    assert!(!sandbox.work().join("y.sif").exists());
}

#[test]
fn what_a_killed_pull_left_is_swept_by_the_next() {
    let sandbox = Sandbox::new();
    let reference = image(&sandbox);
    sandbox.write(".dvrun-1-abcdefgh/new/half", "half");
    sandbox.write(".dvrun-1-abcdefgh.lock", "");
    sandbox.write(".dvrun-mine", "mine");
    finish(&mut pull(&sandbox, &reference, &["-o", "a.sif"])).ok();
    let mut there = names(&sandbox.work());
    there.sort();
    assert_eq!(there, [sandbox.work().join(".dvrun-mine"), sandbox.work().join("a.sif")]);
}
