//! What is executed: words, environment, streams, exit status, apps.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};

use dvrun::oci::Execution;
use dvrun::runtime::{Root, RuntimeError, Status, Stdio, Stream, User, app, entrypoint, environment, script, spawn};

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::fixture::*;
use crate::support::binary;

#[test]
fn words_arrive_as_they_are() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let words = ["", "two words", "'\"", "$HOME `id` \\", "line\nbreak\n", "*", "é", "-n"];
    let argv = [&["sh", "-c", "for word; do echo \"<$word>\"; done", "sh"][..], &words].concat();
    let expected: String = words.iter().map(|word| format!("<{word}>\n")).collect();
    assert_prints(&fixture.container(&argv), &expected);
}

#[test]
fn the_environment_is_the_given_one_and_nothing_else() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let mut container = fixture.container(&["/bin/env"]);
    container.env = [("B", "2"), ("A", "a=b\nc"), ("EMPTY", "")]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec();
    assert_prints(&container, "B=2\nA=a=b\nc\nEMPTY=\n");
    container.env.clear();
    assert_prints(&container, "");
    container.env = vec![("A=B".into(), "c".into())];
    assert!(matches!(refused(&container), RuntimeError::Invalid { .. }));
}

#[test]
fn an_image_s_configuration_starts_its_program() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let image = Execution {
        env: vec!["PATH=/bin".into(), "GREETING=good day".into()],
        entrypoint: vec![
            "sh".into(),
            "-c".into(),
            "echo \"$GREETING $LC_ALL $HOME $TMPDIR $OMP_NUM_THREADS: $0\"".into(),
        ],
        cmd: vec!["default".into()],
        ..Execution::default()
    };
    let mut container = fixture.container(&[]);
    container.env = environment(&image, &[], &container.home, Some(3));
    container.argv = entrypoint(&image, &[]).unwrap();
    assert_prints(&container, "good day C.UTF-8 /home/user /tmp 3: default\n");
    container.argv = entrypoint(&image, &["other".into()]).unwrap();
    assert_prints(&container, "good day C.UTF-8 /home/user /tmp 3: other\n");
}

#[test]
fn a_script_stops_at_the_first_failure_and_names_the_line() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let mut container = fixture.container(&[]);
    container.argv = script("echo one\nfalse\necho two\n");
    let done = run(&container);
    assert_eq!((done.code, done.out.as_str()), (1, "one\n"));
    container.argv = script("echo one\n\nnot_there\n");
    let done = run(&container);
    assert_eq!(done.code, 127);
    // Shells differ in where they begin to count.
    assert!(
        done.err.starts_with("script: line ") && done.err.ends_with(": not_there: not found\n"),
        "{}",
        done.err
    );
    container.argv = script("echo $unset\n");
    assert_eq!(run(&container).code, 2);
}

#[test]
fn the_working_directory_is_made_where_it_is_missing() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for cwd in ["/", "/data", "/new/deep", "/tmp/x", "/home/user/y", "/work"] {
        let mut container = fixture.container(&["pwd"]);
        container.binds = vec![bind(fixture.host(), "/work")];
        container.cwd = cwd.into();
        assert_prints(&container, &format!("{cwd}\n"));
    }
    let mut container = fixture.container(&["pwd"]);
    container.cwd = "relative".into();
    assert!(matches!(refused(&container), RuntimeError::Invalid { .. }));
    container.cwd = "/data/file".into();
    assert!(matches!(refused(&container), RuntimeError::MountPoint { source, .. } if source.0 == libc::ENOTDIR));
}

#[test]
fn status_and_signal_come_back() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for code in [0, 1, 42, 126, 255] {
        assert_eq!(run(&fixture.shell(&format!("exit {code}"))).exit.status, Status::Exited(code));
    }
    let killed = run(&fixture.shell("kill -KILL $$"));
    assert_eq!((killed.exit.status, killed.code), (Status::Signaled(9), 137));
    assert_eq!(run(&fixture.shell("kill -SEGV $$")).exit.status, Status::Signaled(11));
    assert_eq!(
        run(&fixture.shell("kill -PIPE $$")).exit.status,
        Status::Signaled(13),
        "SIGPIPE is not ignored inside"
    );
}

#[test]
fn usage_is_the_program_s() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let usage = run(&fixture.shell("dd if=/dev/zero of=/dev/null bs=64M count=8 2>/dev/null"))
        .exit
        .usage;
    assert!(usage.max_rss > 64 << 20, "{usage:?}");
    assert!(usage.cpu.as_micros() > 0 && usage.wall.as_micros() > 0, "{usage:?}");
    let idle = run(&fixture.container(&["true"])).exit.usage;
    assert!(idle.max_rss < 64 << 20, "{idle:?}");
}

#[test]
fn the_program_may_run_where_its_caller_may() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let script = "while read -r line; do case $line in Cpus_allowed:*) echo \"$line\" ;; esac; done </proc/self/status";
    let container = fixture.container(&["sh", "-c", script]);
    let mine = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let lines = status.lines().filter(|line| line.starts_with("Cpus_allowed:"));
        lines.map(|line| line.to_owned() + "\n").collect::<String>()
    };
    assert_prints(&container, &mine());
    // Of this test's own thread, from which what it starts has it; other tests' come from the first one.
    let this = Pid::from_raw(0);
    let mut one = CpuSet::new();
    one.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(this, &one).unwrap();
    assert_prints(&container, &mine());
    assert!(sched_getaffinity(this).unwrap() == one);
}

#[test]
fn a_program_that_cannot_start_is_an_error_and_no_status() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let bin = fixture.root().join("bin");
    for (name, text) in [
        ("garbage", "\u{7f}ELF"),
        ("orphan", "#!/no/such/interpreter\n"),
        ("plain", "echo\n"),
    ] {
        fs::write(bin.join(name), text).unwrap();
        set_mode(&bin.join(name), if name == "plain" { 0o644 } else { 0o755 });
    }
    let error = refused(&fixture.container(&["absent", "x"]));
    assert_eq!(
        error,
        RuntimeError::ProgramNotFound {
            program: "absent".into(),
            path: "/bin".into()
        }
    );
    assert!(error.hint().is_some());
    assert!(matches!(
        refused(&fixture.container(&["/usr/bin/absent"])),
        RuntimeError::ProgramNotFound { .. }
    ));
    for (program, errno) in [
        ("garbage", libc::ENOEXEC),
        ("orphan", libc::ENOENT),
        ("plain", libc::EACCES),
        ("/data", libc::EACCES),
    ] {
        let error = refused(&fixture.container(&[program]));
        assert!(
            matches!(&error, RuntimeError::NotExecutable { source, .. } if source.0 == errno),
            "{program}: {error:?}"
        );
    }
    assert!(matches!(refused(&fixture.container(&[])), RuntimeError::Invalid { .. }));
    assert!(matches!(refused(&fixture.container(&["echo", "\0"])), RuntimeError::Invalid { .. }));
}

#[test]
fn without_an_image_there_is_no_container() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    fs::rename(fixture.root(), fixture.folder.path().join("away")).unwrap();
    let error = refused(&fixture.container(&["true"]));
    assert!(matches!(&error, RuntimeError::Root { path, source } if *path == fixture.root() && source.0 == libc::ENOENT));
}

#[test]
fn streams_pass_through_and_close_with_the_program() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let (input, mut feed) = std::io::pipe().unwrap();
    let (mut result, output) = std::io::pipe().unwrap();
    let stdio = Stdio {
        stdin: Stream::Fd(input.into()),
        stdout: Stream::Fd(output.into()),
        stderr: Stream::Null,
    };
    // Its output closes long before its end: whoever reads it must not wait for the container.
    let container = fixture.shell("cat; echo lost >&2; exec >&-; read -r never < /dev/zero; exit 5");
    let mut running = spawn(&binary(), &container, stdio).unwrap();
    let data: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let sent = data.clone();
    let writer = std::thread::spawn(move || feed.write_all(&sent));
    let mut received = Vec::new();
    result.read_to_end(&mut received).unwrap();
    writer.join().unwrap().unwrap();
    assert!(received == data);
    running.signal(dvrun::runtime::Signal::SIGKILL).unwrap();
    assert_eq!(running.wait().unwrap().status, Status::Signaled(9));
}

#[test]
fn apps_of_both_layouts_run_with_their_environment() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let apps = fixture.root().join("scif/apps");
    let write = |path: &str, text: &str| {
        let path = apps.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    };
    write(
        "one-app/scif/runscript",
        "#!/bin/sh\necho \"$A $B $SCIF_APPNAME $# $1|$2\"\ntool\nexit 7\n",
    );
    set_mode(&apps.join("one-app/scif/runscript"), 0o755);
    write("one-app/scif/env/90-environment.sh", "export A=last B=\"args:$#\"\n");
    write("one-app/scif/env/01-base.sh", "export A=first\n");
    write("one-app/scif/env/README", "exit 99\n");
    write("one-app/bin/tool", "#!/bin/sh\necho tool\n");
    set_mode(&apps.join("one-app/bin/tool"), 0o755);
    write("two/scif/runscript", "echo \"$C ${SCIF_APPROOT_one_app}\" \"$@\"\n");
    write("two/scif/environment.sh", "export C=reference\n");

    let start = |name: &str, args: &[&str]| {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let app = app(&Root::Folder(fixture.root()), name, &args).unwrap();
        let mut container = fixture.container(&[]);
        container.argv = app.argv;
        container.env.extend(app.env);
        run(&container)
    };
    let done = start("one-app", &["a b", "$x"]);
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (7, "last args:1 one-app 2 a b|$x\ntool\n", "")
    );
    let done = start("two", &["x  y"]);
    assert_eq!((done.code, done.out.as_str()), (0, "reference /scif/apps/one-app x  y\n"));
}

#[test]
fn what_an_app_sees_of_scif() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let folder = fixture.root().join("scif/apps/solo/scif");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("runscript"), "env\n").unwrap();
    let app = app(&Root::Folder(fixture.root()), "solo", &[]).unwrap();
    let mut container = fixture.container(&[]);
    container.argv = app.argv;
    container.env.extend(app.env.clone());
    let seen: BTreeMap<String, String> = run(&container)
        .out
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(n, v)| (n.into(), v.into()))
        .collect();
    let given: BTreeMap<String, String> = app.env.into_iter().collect();
    assert!(given.iter().all(|(name, value)| seen.get(name) == Some(value)), "{seen:?}");
    assert!(!seen.keys().any(|name| name.starts_with("dvrun")), "{seen:?}");
}

#[test]
fn whom_an_image_names_is_the_caller_under_another_number() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    fs::write(
        fixture.root().join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\napp:x:1234:1235::/:/bin/sh\n",
    )
    .unwrap();
    for (user, expected) in [("app", "1234 1235\napp\n"), ("77:78", "77 78\n"), ("", "0 0\nroot\n")] {
        let mut container = fixture.shell("echo $(id -u) $(id -g); touch /work/made; whoami");
        container.user = User::Image(user.to_owned());
        container.binds = vec![bind(fixture.host(), "/work")];
        let done = run(&container);
        assert!(done.code == 0 && done.out.starts_with(expected), "{user}: {done:?}");
        let made = fs::metadata(fixture.on_host("made")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), nix::unistd::getuid().as_raw());
    }
    let mut container = fixture.shell("true");
    container.user = User::Image("nosuch".to_owned());
    assert!(matches!(refused(&container), RuntimeError::User { reason, .. } if reason.contains("`nosuch`")));
}
