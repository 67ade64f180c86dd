//! How long it takes to start a container and end it again, beside `bwrap`, `ch-run` and `apptainer exec` where they are
//! installed: `cargo bench --bench start`, as an ordinary user, with busybox-static and squashfs-tools.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 40;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = root(dir.path());
    let image = dir.path().join("image.squashfs");
    run(Command::new("mksquashfs").arg(&root).arg(&image).args(["-quiet", "-no-progress"]));
    let dvrun = std::env::var_os("DVRUN_BENCH_EXE").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_dvrun")), PathBuf::from);
    let exec = |image: &Path| {
        let mut command = Command::new(&dvrun);
        command.arg("exec").arg(image).args(["--", "/bin/true"]).env("HOME", dir.path());
        command
    };
    measure("dvrun --version", &mut || {
        let mut command = Command::new(&dvrun);
        command.arg("--version");
        command
    });
    let folder = measure("dvrun exec FOLDER", &mut || exec(&root));
    let file = measure("dvrun exec FILE", &mut || exec(&image));
    let bwrap = measure("bwrap --bind FOLDER", &mut || {
        let mut command = Command::new("bwrap");
        command.arg("--ro-bind").arg(&root).args(["/", "--proc", "/proc", "--dev", "/dev"]);
        command.args(["--unshare-user", "--unshare-pid", "/bin/true"]);
        command
    });
    let ch_run = measure("ch-run FOLDER", &mut || {
        let mut command = Command::new("ch-run");
        command.arg(&root).args(["--", "/bin/true"]);
        command
    });
    let apptainer = measure("apptainer exec FILE", &mut || {
        let mut command = Command::new("apptainer");
        command.arg("-q").arg("exec").arg(&image).arg("/bin/true");
        command
    });
    println!();
    for (name, peer, own) in [
        ("bwrap / dvrun, a folder", bwrap, folder),
        ("ch-run / dvrun, a folder", ch_run, folder),
        ("apptainer / dvrun, a file", apptainer, file),
    ] {
        match (peer, own) {
            (Some(peer), Some(own)) => println!("{name:<28} {:.2}", peer.as_secs_f64() / own.as_secs_f64()),
            _ => println!("{name:<28} not measured"),
        }
    }
}

/// A root of busybox alone, with the folders that other runtimes need.
fn root(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for folder in [
        "bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "var/tmp",
    ] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static");
    for applet in ["sh", "true"] {
        symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    for file in ["passwd", "group", "hosts", "resolv.conf"] {
        fs::write(root.join("etc").join(file), "").expect("a file");
    }
    root
}

/// The median of many runs; `None` where the program is missing or fails.
fn measure(name: &str, make: &mut dyn FnMut() -> Command) -> Option<Duration> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut command = make();
        let start = Instant::now();
        match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => times.push(start.elapsed()),
            _ => {
                println!("{name:<28} not available");
                return None;
            }
        }
    }
    times.sort();
    let median = times[ROUNDS / 2];
    println!(
        "{name:<28} {:>8.2} ms (least {:.2})",
        median.as_secs_f64() * 1e3,
        times[0].as_secs_f64() * 1e3
    );
    Some(median)
}

fn run(command: &mut Command) {
    let status = command.stdout(Stdio::null()).status().expect("squashfs-tools");
    assert!(status.success(), "{command:?}: {status}");
}
