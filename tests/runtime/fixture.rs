//! A root file system of busybox alone, and containers of it.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use dvrun::runtime::{Container, Exit, Kernel, MissingCwd, Mount, Root, Running, RuntimeError, Stdio, Stream, User, Writable, spawn_with};
use tempfile::TempDir;

use crate::support::{binary, lane};

/// Whether containers can be tested here: as an ordinary user, with a static busybox.
pub fn ready() -> bool {
    lane("an ordinary user", !nix::unistd::geteuid().is_root()) && lane("busybox-static", Path::new("/bin/busybox").exists())
}

/// A folder that holds an image's root (`root`), and what a test binds (`host`).
pub struct Fixture {
    pub folder: TempDir,
}

impl Fixture {
    pub fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fixture = Fixture { folder };
        let root = fixture.root();
        for path in ["bin", "etc", "usr/bin", "usr/share", "data"] {
            fs::create_dir_all(root.join(path)).expect("a folder of the image");
        }
        fs::create_dir(fixture.host()).expect("a folder of the host");
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect("an applet");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("passwd");
        fs::write(root.join("etc/group"), "root:x:0:\n").expect("group");
        fs::write(root.join("data/file"), "of the image\n").expect("a file of the image");
        fixture
    }

    /// With every mount point that is there by default, so that nothing has to be laid over it.
    pub fn complete() -> Fixture {
        let fixture = Fixture::new();
        for folder in ["proc", "sys", "dev", "tmp", "var/tmp", "home/user", "work"] {
            fs::create_dir_all(fixture.root().join(folder)).expect("a mount point");
        }
        for file in ["etc/hosts", "etc/resolv.conf"] {
            fs::write(fixture.root().join(file), "").expect("a mount point");
        }
        fixture
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub fn host(&self) -> PathBuf {
        self.folder.path().join("host")
    }

    /// A file or folder of the host, by its name.
    pub fn on_host(&self, name: &str) -> PathBuf {
        self.host().join(name)
    }

    /// A container that runs `argv`.
    pub fn container(&self, argv: &[&str]) -> Container {
        Container {
            root: Root::Folder(self.root()),
            writable: Writable::No,
            binds: vec![],
            env: vec![("PATH".into(), "/bin".into())],
            cwd: "/".into(),
            argv: argv.iter().map(|&word| word.into()).collect(),
            missing_cwd: MissingCwd::Make,
            user: User::Caller,
            scratch: None,
            home: "/home/user".into(),
            hostname: None,
            read_ahead: None,
        }
    }

    /// A container that runs a shell script.
    pub fn shell(&self, script: &str) -> Container {
        self.container(&["sh", "-c", script])
    }
}

const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "chroot", "cp", "dd", "echo", "env", "false", "head", "hostname", "id", "kill", "ln", "ls", "mkdir", "mknod",
    "mount", "mv", "nproc", "ps", "pwd", "readlink", "rm", "seq", "sh", "sleep", "sort", "stat", "stty", "test", "touch", "true", "tty",
    "umount", "unshare", "wc", "whoami", "yes",
];

pub fn bind(source: impl Into<PathBuf>, target: &str) -> Mount {
    Mount {
        source: source.into(),
        target: target.into(),
        read_only: false,
    }
}

pub fn bind_read_only(source: impl Into<PathBuf>, target: &str) -> Mount {
    Mount {
        read_only: true,
        ..bind(source, target)
    }
}

/// What a program wrote, and how it ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub exit: Exit,
}

pub fn run(container: &Container) -> Done {
    run_with(container, Kernel::default())
}

pub fn run_with(container: &Container, kernel: Kernel) -> Done {
    let (mut out, mut err) = (capture(), capture());
    let mut running = start_with(container, kernel, Stream::Null, &out, &err).expect("a container");
    let exit = running.wait().expect("its end");
    Done {
        code: exit.status.code(),
        out: text(&mut out),
        err: text(&mut err),
        exit,
    }
}

/// The error of a container that must not start.
pub fn refused(container: &Container) -> RuntimeError {
    refused_with(container, Kernel::default())
}

pub fn refused_with(container: &Container, kernel: Kernel) -> RuntimeError {
    start_with(container, kernel, Stream::Null, &capture(), &capture()).expect_err("no container")
}

pub fn start_with(container: &Container, kernel: Kernel, stdin: Stream, out: &File, err: &File) -> Result<Running, RuntimeError> {
    let stdio = Stdio {
        stdin,
        stdout: out.try_clone().expect("a descriptor").into(),
        stderr: err.try_clone().expect("a descriptor").into(),
    };
    spawn_with(&binary(), container, stdio, kernel)
}

pub fn capture() -> File {
    tempfile::tempfile().expect("a temporary file")
}

pub fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().expect("a file");
    file.read_to_string(&mut text).expect("UTF-8");
    text
}

/// Asserts that a script prints `expected` and ends well.
#[track_caller]
pub fn assert_prints(container: &Container, expected: &str) {
    assert_prints_with(container, Kernel::default(), expected);
}

#[track_caller]
pub fn assert_prints_with(container: &Container, kernel: Kernel, expected: &str) {
    let done = run_with(container, kernel);
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (0, expected, ""),
        "{:?}",
        container.argv
    );
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}
