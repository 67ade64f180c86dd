//! `exec`, `run-app`, `shell`: a container at hand.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::termios::tcgetattr;

use crate::runtime::fixture::{Fixture, ready, set_mode};
use crate::support::{Running, Sandbox, Terminal, finish, lane, overlays, wait_until};

struct Here {
    sandbox: Sandbox,
    fixture: Fixture,
}

impl Here {
    fn new() -> Here {
        Here {
            sandbox: Sandbox::new(),
            fixture: Fixture::new(),
        }
    }

    /// `dvrun COMMAND OPTIONS… ROOT REST…`
    fn dvrun(&self, command: &str, options: &[&str], rest: &[&str]) -> Command {
        let mut dvrun = self.sandbox.dvrun();
        dvrun.arg(command).args(options).arg(self.fixture.root()).args(rest);
        dvrun
    }

    fn exec(&self, options: &[&str], program: &[&str]) -> Command {
        let mut dvrun = self.dvrun("exec", options, &["--"]);
        dvrun.args(program);
        dvrun
    }

    /// The fixture's root as a SquashFS file.
    fn packed(&self) -> Option<String> {
        let there = Command::new("mksquashfs").arg("-version").output().is_ok();
        if !lane("mksquashfs: not installed", there)
            || !lane(
                "/dev/fuse with mode 0666",
                fs::File::options().read(true).write(true).open("/dev/fuse").is_ok(),
            )
        {
            return None;
        }
        let image = self.sandbox.work().join("image.squashfs");
        let mut pack = Command::new("mksquashfs");
        pack.arg(self.fixture.root())
            .arg(&image)
            .args(["-noappend", "-quiet", "-no-progress"]);
        finish(&mut pack).ok();
        Some(image.display().to_string())
    }
}

#[test]
fn the_status_is_the_programs_or_a_shells_for_what_cannot_start() {
    if !ready() {
        return;
    }
    let here = Here::new();
    finish(&mut here.exec(&[], &["sh", "-c", "exit 41"])).exits(41);
    finish(&mut here.exec(&[], &["sh", "-c", "kill -TERM $$"])).exits(143);
    finish(&mut here.exec(&[], &["nosuch"]))
        .exits(127)
        .complains("no program `nosuch`")
        .complains("hint: ");
    finish(&mut here.exec(&[], &["/bin/nosuch"])).exits(127);
    finish(&mut here.exec(&[], &["/data/file"]))
        .exits(126)
        .complains("cannot be executed");
    finish(&mut here.exec(&[], &["/data"])).exits(126);
    // There is nothing to run in a folder that says nothing.
    finish(&mut here.dvrun("exec", &[], &[]))
        .exits(2)
        .complains("neither an entry point nor a default command");
}

#[test]
fn a_working_directory_that_is_asked_for_must_be_there() {
    if !ready() {
        return;
    }
    let here = Here::new();
    assert_eq!(finish(&mut here.exec(&["--pwd", "/data"], &["pwd"])).ok().stdout, "/data\n");
    finish(&mut here.exec(&["--pwd", "/nowhere"], &["pwd"]))
        .exits(2)
        .complains("the working directory /nowhere cannot be used")
        .complains("choose a folder that exists");
    finish(&mut here.exec(&["--pwd", "/data/file"], &["pwd"])).exits(2);
    finish(&mut here.exec(&["--pwd", "data"], &["pwd"]))
        .exits(2)
        .complains("not an absolute path");
}

#[test]
fn binds_and_variables() {
    if !ready() {
        return;
    }
    let here = Here::new();
    let host = here.fixture.host().display().to_string();
    fs::write(here.fixture.on_host("seen"), "seen").expect("a file");
    let bind = |words: &str| format!("{host}:/work{words}");
    let write = ["sh", "-c", "cat /work/seen; echo x > /work/new"];
    finish(&mut here.exec(&["-B", &bind(":ro")], &write))
        .exits(1)
        .says("seen")
        .complains("Read-only");
    finish(&mut here.exec(&["-B", &bind(":rw,optional")], &write)).ok().says("seen");
    assert_eq!(fs::read_to_string(here.fixture.on_host("new")).expect("it was written"), "x\n");
    finish(&mut here.exec(&["--bind", "/nowhere:/work"], &["true"]))
        .exits(2)
        .complains("/nowhere, to be bound to /work, does not exist");
    finish(&mut here.exec(&["--bind", "/nowhere:/work:optional"], &["true"])).ok();
    finish(&mut here.exec(&["--bind", "/etc:relative"], &["true"]))
        .exits(2)
        .complains("not absolute");

    let mut command = here.exec(
        &["--env", "A=1=2", "-e", "OUTSIDE", "-e", "NOSUCH"],
        &["sh", "-c", "echo $A $OUTSIDE ${HIDDEN-none}"],
    );
    finish(command.env("OUTSIDE", "taken over").env("HIDDEN", "x"))
        .ok()
        .complains("there is no such variable")
        .says("1=2 taken over none\n");
}

#[test]
fn writes_are_refused_forgotten_or_kept() {
    if !ready() {
        return;
    }
    let here = Here::new();
    fs::write(here.fixture.root().join("data/gone"), "").expect("a file of the image");
    let change = ["sh", "-c", "echo changed > /data/file && rm /data/gone && mkdir /new"];
    let look = ["sh", "-c", "cat /data/file; test -e /data/gone && echo there; ls -d /new"];
    finish(&mut here.exec(&[], &change)).exits(1);
    let layer = here.sandbox.work().join("layer").display().to_string();
    if !overlays() {
        let refused = |options: &[&str]| finish(&mut here.exec(options, &change)).exits(3).complains("5.11");
        refused(&["--writable-tmpfs"]);
        refused(&["--overlay", &layer]);
        return;
    }
    finish(&mut here.exec(&["--writable-tmpfs"], &change)).ok();
    finish(&mut here.exec(&["--overlay", &layer], &change)).ok();
    assert_eq!(finish(&mut here.exec(&["--overlay", &layer], &look)).ok().stdout, "changed\n/new\n");
    assert!(finish(&mut here.exec(&[], &look)).exits(1).stdout.starts_with("of the image"));
    assert_eq!(
        fs::read_to_string(here.fixture.root().join("data/file")).expect("it is there"),
        "of the image\n"
    );

    // One at a time.
    let mut first = Running::start(&mut here.exec(&["--overlay", &layer], &["sh", "-c", "touch /new/started; sleep 1000"]));
    let started = Path::new(&layer).join("upper/new/started");
    first.reaches("the first has begun", || started.exists());
    finish(&mut here.exec(&["--overlay", &layer], &look))
        .exits(3)
        .complains("another container is writing to it");
    drop(first);
    wait_until("the layer is free", Duration::from_secs(60), || {
        finish(&mut here.exec(&["--overlay", &layer], &["true"])).status.success()
    });
    finish(&mut here.exec(&["--overlay", "/nowhere/layer"], &look))
        .exits(3)
        .complains("make the folder that it lies in");
    finish(&mut here.exec(&["--overlay", "/etc"], &look))
        .exits(3)
        .complains("cannot take the container's writes");
    finish(&mut here.exec(&["--overlay", &layer, "--writable-tmpfs"], &look)).exits(2);
}

#[test]
fn root_inside_is_the_caller_outside() {
    if !ready() {
        return;
    }
    let here = Here::new();
    let host = here.fixture.host().display().to_string();
    let bind = format!("{host}:/work");
    let make = ["sh", "-c", "id -u; touch /work/made; chown 0:0 /work/made; stat -c %u /work/made"];
    for option in [&["--user", "root"][..], &["--fakeroot"]] {
        let options = [option, &["--bind", &bind]].concat();
        assert_eq!(finish(&mut here.exec(&options, &make)).ok().stdout, "0\n0\n");
        let made = fs::metadata(here.fixture.on_host("made")).expect("it was made");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), nix::unistd::getuid().as_raw());
    }
    // Nobody else can be had.
    finish(&mut here.exec(&["--user", "root", "--bind", &bind], &["chown", "7:7", "/work/made"])).exits(1);
    finish(&mut here.exec(&["--user", "root", "--bind", "/etc:/host"], &["cat", "/host/shadow"])).exits(1);
    let own = nix::unistd::getuid().to_string();
    assert_eq!(finish(&mut here.exec(&[], &["id", "-u"])).ok().stdout, format!("{own}\n"));
    // An image that names nobody means root.
    assert_eq!(finish(&mut here.exec(&["--user", "image"], &["id", "-u"])).ok().stdout, "0\n");
    finish(&mut here.exec(&["--user", "1000"], &["true"])).exits(2);
}

#[test]
fn apps_of_folders_and_of_image_files() {
    if !ready() {
        return;
    }
    let here = Here::new();
    let app = here.fixture.root().join("scif/apps/greet/scif");
    fs::create_dir_all(&app).expect("a folder of the image");
    fs::write(app.join("runscript"), "#!/bin/sh\necho \"$SCIF_APPNAME $WHO $*\"\nexit 5\n").expect("a file of the image");
    set_mode(&app.join("runscript"), 0o755);
    let root = here.fixture.root().display().to_string();
    for image in [Some(root), here.packed()].into_iter().flatten() {
        let dvrun = |command: &str, arguments: &[&str]| finish(here.sandbox.dvrun().arg(command).args(arguments));
        assert_eq!(dvrun("apps", &[&image]).ok().stdout, "greet\n");
        let ended = dvrun("run-app", &["--env", "WHO=ada", &image, "greet", "--help", "-x", "a b"]).exits(5);
        assert_eq!(ended.stdout, "greet ada --help -x a b\n");
        dvrun("run-app", &[&image, "gret"]).exits(2).complains("did you mean `greet`?");
    }
}

#[test]
fn a_shell_takes_what_the_image_has() {
    if !ready() {
        return;
    }
    let here = Here::new();
    let mut images = vec![here.fixture.root().display().to_string()];
    images.extend(here.packed());
    for image in images {
        let mut command = here.sandbox.dvrun();
        command.args(["shell", &image]).env("SHELL", "/usr/bin/nosuch-shell");
        let mut shell = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        shell
            .stdin
            .take()
            .expect("it was asked for")
            .write_all(b"echo $((6*7)); exit 9\n")
            .expect("it reads");
        let ended = shell.wait_with_output().expect("it ends");
        assert_eq!((ended.stdout.as_slice(), ended.status.code()), (&b"42\n"[..], Some(9)));
    }
    fs::remove_file(here.fixture.root().join("bin/sh")).expect("it was there");
    finish(&mut here.dvrun("shell", &[], &[])).exits(127).complains("has no shell");
}

#[test]
fn a_shell_has_a_terminal_that_follows_the_callers() {
    if !ready() {
        return;
    }
    let here = Here::new();
    let mut size = nix::pty::Winsize {
        ws_row: 31,
        ws_col: 97,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let mut person = Terminal::new(&size);
    let before = tcgetattr(&person.programs).expect("a terminal");
    let mut shell = person.start(here.dvrun("shell", &[], &[]).env("TERM", "vt100"));
    // The shell's echo of what was typed has the arithmetic in it.
    person.types("stty size; tty; echo $TERM $((6*7))\n");
    person.until("31 97");
    person.until("/dev/pts/0");
    person.until("vt100 42");
    size.ws_row = 40;
    person.resize(&size);
    person.types("while test \"$(stty size)\" != '40 97'; do sleep 0.1; done; echo $((7*7)); exit 6\n");
    person.until("49");
    assert_eq!(shell.wait().expect("it ends").code(), Some(6));
    assert_eq!(
        tcgetattr(&person.programs).expect("a terminal"),
        before,
        "the caller's terminal is as it was"
    );
    finish(&mut here.exec(&["--tty"], &["true"])).exits(2).complains("no terminal");
}

#[test]
fn the_doctor_knows_a_host_and_what_it_forbids() {
    if !ready() {
        return;
    }
    let here = Here::new();
    let report = finish(here.sandbox.dvrun().args(["doctor", "--json"])).ok().json();
    let check = |name: &str| {
        let checks = report["checks"].as_array().expect("a list");
        checks
            .iter()
            .find(|check| check["name"] == name)
            .cloned()
            .unwrap_or_else(|| panic!("{name} in {report:#}"))
    };
    assert_eq!((&report["ok"], &check("containers")["state"]), (&true.into(), &"ok".into()));
    for name in [
        "writable layer",
        "image files",
        "seccomp",
        "cgroups",
        "scratch",
        "cache",
        "slurm",
        "apptainer",
        "registries",
    ] {
        assert!(check(name)["what"].as_str().is_some_and(|what| !what.is_empty()), "{name}");
    }
    finish(here.sandbox.dvrun().arg("doctor")).ok().says("ok    containers");

    // A host without user namespaces: the setting counts for each user namespace, so that one can be made.
    let forbidden = |arguments: &[&str]| {
        let mut inside = Command::new("unshare");
        inside.args(["-Ur", "sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"", "sh"]);
        let dvrun = here.sandbox.dvrun();
        inside.arg(dvrun.get_program()).args(dvrun.get_args()).args(arguments);
        for (name, value) in dvrun.get_envs() {
            inside.env(name, value.unwrap_or_default());
        }
        finish(&mut inside)
    };
    let ended = forbidden(&["doctor"]).exits(1);
    let root = here.fixture.root().display().to_string();
    let hint = "ask the administrator for `sysctl -w user.max_user_namespaces=15000` on every node";
    ended.says("FAIL  containers").says("user.max_user_namespaces is 0").says(hint);
    forbidden(&["exec", &root, "--", "true"])
        .exits(3)
        .complains("user.max_user_namespaces is 0")
        .complains(hint)
        .complains("Apptainer");
}

#[test]
fn a_stage_runs_in_an_image_file_and_damage_is_told() {
    if !ready() {
        return;
    }
    let here = Here::new();
    let lines: String = (0..200_000).map(|at| format!("line {at}\n")).collect();
    fs::write(here.fixture.root().join("data/lines"), lines).expect("a file of the image");
    let Some(image) = here.packed() else { return };
    here.sandbox.write(
        "flow.yaml",
        "version: 1\nname: file\nimages: {tools: image.squashfs}\nstages:\n  read: {image: tools, user: root, run: 'id -u > who; cat /data/lines > /dev/null', outputs: [who]}\n",
    );
    let run = || finish(here.sandbox.dvrun().args(["run", "flow.yaml"]));
    run().ok();
    assert_eq!(here.sandbox.read("who"), "0\n");
    // The same bytes: nothing runs again.
    assert_eq!(finish(here.sandbox.dvrun().args(["run", "flow.yaml", "--json"])).json()["ok"], 0);
    // Some part of the file is the lines'; of the others some are the shell's own.
    let good = fs::read(&image).expect("it was packed");
    let told = (1..12).any(|part| {
        let mut bad = good.clone();
        bad[good.len() * part / 12..][..64].fill(0x55);
        fs::write(&image, bad).expect("the sandbox is writable");
        let ended = run();
        ended.status.code() == Some(1) && ended.stderr.contains("the image is damaged") && {
            finish(here.sandbox.dvrun().args(["explain", "read"])).says("the image is damaged");
            true
        }
    });
    assert!(told, "no damage was noticed");
    fs::remove_file(&image).expect("it was there");
    run().exits(3).complains("image `tools` cannot be had");
}
