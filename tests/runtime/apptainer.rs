//! The two runtimes by one table: what a program sees and how it ends is the same by ours and by Apptainer.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use dvrun::runtime::{Apptainer, Container, Invocation, Writable, apptainer, mount_points};

use super::fixture::{Fixture, bind, bind_read_only, ready, run, set_mode};
use crate::support::{as_root, finish, lane, overlays};

/// What a row asks of a container: a script, the exit status, and what it prints.
type Row = (&'static str, i32, &'static str);

const TABLE: [Row; 11] = [
    (
        "test -c /dev/null && test -d /proc/self && test -d /sys/kernel && whoami >/dev/null",
        0,
        "",
    ),
    (
        "cat /in/file; echo x 2>/dev/null >/in/new || echo refused",
        0,
        "of the host\nrefused\n",
    ),
    ("echo made >/out/made; cat /out/made", 0, "made\n"),
    ("cat /in/inner/file", 0, "inner\n"),
    ("cat /data/one", 0, "a file, over the image's own\n"),
    ("cat \"/in/a,b\"/file", 0, "a comma\n"),
    (
        "echo \"$A\"; echo \"$B\"; echo ${HOST_ONLY-none}",
        0,
        "it's $HOME, `id` \"quoted\" \\n\n\nnone\n",
    ),
    (
        "pwd; echo $HOME; echo x >$HOME/x && cat $HOME/x; echo $TMPDIR",
        0,
        "/out\n/home/user\nx\n/tmp\n",
    ),
    ("echo t >/tmp/t; cat /var/tmp/t; exit 7", 7, "t\n"),
    ("echo w >/data/written && cat /data/written", 0, "w\n"),
    ("kill -9 $$", 137, ""),
];

/// The fixture's container with all that the table looks at.
fn container(fixture: &Fixture, script: &str) -> Container {
    let host = |name: &str, text: &str| {
        let path = fixture.on_host(name);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder of the host");
        fs::write(&path, text).expect("a file of the host");
    };
    host("in/file", "of the host\n");
    host("in/a,b/file", "a comma\n");
    host("inner/file", "inner\n");
    host("one", "a file, over the image's own\n");
    for folder in ["in/inner", "out", "scratch", "home"] {
        fs::create_dir_all(fixture.on_host(folder)).expect("a folder of the host");
        set_mode(&fixture.on_host(folder), 0o777);
    }
    let mut container = fixture.shell(script);
    if overlays() {
        container.writable = Writable::Tmpfs;
    }
    container.cwd = "/out".into();
    container.scratch = Some(fixture.on_host("scratch"));
    container.binds = vec![
        bind_read_only(fixture.on_host("inner"), "/in/inner"),
        bind_read_only(fixture.on_host("in"), "/in"),
        bind(fixture.on_host("out"), "/out"),
        bind_read_only(fixture.on_host("one"), "/data/one"),
    ];
    let env = [
        ("A", "it's $HOME, `id` \"quoted\" \\n"),
        ("B", ""),
        ("TMPDIR", "/tmp"),
        ("HOME", "/home/user"),
    ];
    container.env.extend(env.map(|(name, value)| (name.to_owned(), value.to_owned())));
    container
}

/// An image without a mount point of its own.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    for folder in ["in", "out"] {
        fs::create_dir_all(fixture.root().join(folder)).expect("a folder of the image");
    }
    fs::write(fixture.root().join("data/one"), "").expect("a file of the image");
    fixture
}

#[test]
fn ours_does_what_the_table_says() {
    if !ready() {
        return;
    }
    for (script, code, out) in TABLE {
        if script.contains("/data/written") && !overlays() {
            continue;
        }
        let fixture = fixture();
        let done = run(&container(&fixture, script));
        assert_eq!((done.code, done.out.as_str()), (code, out), "{script}: {}", done.err);
    }
}

/// Apptainer runs as an ordinary user, in a root of its own that only root can enter, and without this environment: what is
/// for it is handed over by words.
#[test]
fn apptainer_does_what_the_table_says_as_root() {
    if !as_root() {
        return;
    }
    let words = env::var("DVRUN_TEST_APPTAINER").unwrap_or_else(|_| "apptainer".into());
    let version = Command::new("sh").args(["-c", &format!("{words} version")]).output();
    if !lane("apptainer: not installed", version.is_ok_and(|output| output.status.success())) {
        return;
    }
    let (enter, program) = words.rsplit_once(' ').unwrap_or(("", &words));
    for (script, code, out) in TABLE {
        let fixture = fixture();
        let container = container(&fixture, script);
        set_mode(fixture.folder.path(), 0o755);
        finish(Command::new("chmod").args(["-R", "a+rwX"]).arg(fixture.host())).ok();
        // A writable layer needs the image's owner to be known where Apptainer runs: it is its user's, as in a store.
        let user = Command::new("sh")
            .args(["-c", &format!("{enter} id -u; {enter} id -g")])
            .output()
            .expect("a shell");
        let user = String::from_utf8_lossy(&user.stdout).trim().replace('\n', ":");
        finish(Command::new("chown").args(["-R", &user]).arg(fixture.root())).ok();
        let wrapper = fixture.folder.path().join("apptainer");
        let text = format!(
            "#!/bin/bash\nmapfile -d '' vars < <(env -0 | grep -z ^APPTAINERENV_)\nexec {enter} env \"${{vars[@]}}\" {program} \"$@\"\n"
        );
        fs::write(&wrapper, text).expect("a program");
        fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).expect("a mode");
        let layer = fixture.on_host("layer");
        fs::create_dir(&layer).expect("a folder of the host");
        let environment = [
            ("PATH".to_owned(), env::var("PATH").unwrap_or_default()),
            ("PEERS_BIND".to_owned(), env::var("PEERS_BIND").unwrap_or_default()),
        ];
        let how = Apptainer {
            program: &wrapper,
            home: &fixture.on_host("home"),
            layer: mount_points(&container, &layer).expect("an image").then_some(layer.as_path()),
            environment: &environment,
            rank: false,
        };
        let Invocation { argv, env: variables } = apptainer(&how, &container).expect("a container that Apptainer can be told of");
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).env_clear().envs(variables);
        command.env("HOST_ONLY", "seen").current_dir(Path::new("/"));
        let done = finish(&mut command);
        assert_eq!(
            (done.status.code(), done.stdout.as_str()),
            (Some(code), out),
            "{script}: {}",
            done.stderr
        );
    }
}
