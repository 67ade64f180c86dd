//! How long it takes to start a container and end it again, beside `bwrap`, `ch-run` and `apptainer exec` where they are
//! installed: `cargo bench --bench start`, as an ordinary user, with busybox-static and squashfs-tools. `DVRUN_BENCH_EXE` names another dvrun,
//! and the benchmark's own binary runs without cargo, in a root that has the peers.

mod limit;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 60;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [argument, root] = &arguments[..]
        && argument == limit::ARGUMENT
    {
        return limit::run(Path::new(root), "/bin/true").expect("a container");
    }
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
    let version = || {
        let mut command = Command::new(&dvrun);
        command.arg("--version");
        command
    };
    let bwrap = || {
        let mut command = Command::new("bwrap");
        command.arg("--ro-bind").arg(&root).args(["/", "--proc", "/proc", "--dev", "/dev"]);
        command.args(["--unshare-user", "--unshare-pid", "/bin/true"]);
        command
    };
    // What dvrun's containers have besides, as far as there is an option for it: no seccomp filter, nothing of /proc covered.
    let bwrap_alike = || {
        let mut command = Command::new("bwrap");
        command
            .arg("--ro-bind")
            .arg(&root)
            .args(["/", "--proc", "/proc", "--dev", "/dev", "--ro-bind", "/sys", "/sys"]);
        for folder in ["/dev/shm", "/tmp", "/var/tmp", "/home"] {
            command.args(["--tmpfs", folder]);
        }
        for file in ["/etc/passwd", "/etc/group", "/etc/hosts", "/etc/resolv.conf"] {
            command.args(["--ro-bind", file, file]);
        }
        command.args(["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]);
        command.args(["--new-session", "--die-with-parent", "--cap-drop", "ALL", "/bin/true"]);
        command
    };
    let ch_run = || {
        let mut command = Command::new("ch-run");
        command.arg(&root).args(["--", "/bin/true"]);
        command
    };
    let apptainer = || {
        let mut command = Command::new("apptainer");
        command.arg("-q").arg("exec").arg(&image).arg("/bin/true");
        command
    };
    let itself = std::env::current_exe().expect("the benchmark's own binary");
    let least = || {
        let mut command = Command::new(&itself);
        command.arg(limit::ARGUMENT).arg(&root);
        command
    };
    let (in_folder, in_file) = (|| exec(&root), || exec(&image));
    let [_, least, folder, file, bwrap, bwrap_alike, ch_run, apptainer] = measure([
        ("dvrun --version", &version),
        ("the least, see limit.rs", &least),
        ("dvrun exec FOLDER", &in_folder),
        ("dvrun exec FILE", &in_file),
        ("bwrap --bind FOLDER", &bwrap),
        ("bwrap, a container alike", &bwrap_alike),
        ("ch-run FOLDER", &ch_run),
        ("apptainer exec FILE", &apptainer),
    ]);
    println!();
    for (name, peer, own) in [
        ("the least / dvrun, a folder", least, folder),
        ("bwrap / dvrun, a folder", bwrap, folder),
        ("the same, containers alike", bwrap_alike, folder),
        ("ch-run / dvrun, a folder", ch_run, folder),
        ("apptainer / dvrun, a file", apptainer, file),
    ] {
        match (peer, own) {
            (Some(peer), Some(own)) => println!("{name:<28} {:.2}", peer.as_secs_f64() / own.as_secs_f64()),
            _ => println!("{name:<28} not measured"),
        }
    }
    ExitCode::SUCCESS
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

/// The medians of many runs, taken in turn, since a machine's speed changes by the minute; `None` where a program is missing or
/// fails. Each runs twice, and the second run counts: what the kernel tidies up after a container has ended (a tenth of a
/// millisecond and more) is then at the cost of its own kind.
fn measure<const N: usize>(commands: [(&str, &dyn Fn() -> Command); N]) -> [Option<Duration>; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for ((_, make), times) in commands.iter().zip(&mut times) {
            let timed = || {
                let mut command = make();
                let start = Instant::now();
                let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
                status.is_ok_and(|status| status.success()).then(|| start.elapsed())
            };
            timed();
            times.extend(timed());
        }
    }
    let mut commands = commands.into_iter();
    times.map(|mut times| {
        let (name, _) = commands.next().expect("as many as there are lists");
        if times.len() < ROUNDS {
            println!("{name:<28} not available");
            return None;
        }
        times.sort();
        let median = times[ROUNDS / 2];
        println!(
            "{name:<28} {:>8.2} ms (least {:.2})",
            median.as_secs_f64() * 1e3,
            times[0].as_secs_f64() * 1e3
        );
        Some(median)
    })
}

fn run(command: &mut Command) {
    let status = command.stdout(Stdio::null()).status().expect("squashfs-tools");
    assert!(status.success(), "{command:?}: {status}");
}
