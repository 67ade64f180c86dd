//! A place of a test's own: home, cache, configuration and work folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use walkdir::WalkDir;

use super::dvrun;

/// Gone when dropped; kept when the test failed and `DVRUN_TEST_KEEP` is set.
pub struct Sandbox {
    root: Option<TempDir>,
    path: PathBuf,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        let root = tempfile::Builder::new()
            .prefix("dvrun-test-")
            .tempdir()
            .expect("the temporary folder is writable");
        // Canonical, so that paths in messages can be compared.
        let path = root.path().canonicalize().expect("it was just made");
        for folder in ["home", "cache", "work", "tmp"] {
            fs::create_dir(path.join(folder)).expect("an empty folder takes a new one");
        }
        let sandbox = Sandbox { root: Some(root), path };
        sandbox.config("{}\n");
        sandbox
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// Where workflows lie and commands start.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Writes `config.yaml`, which [`Sandbox::dvrun`] hands over with `--config`.
    pub fn config(&self, yaml: &str) {
        fs::write(self.path.join("config.yaml"), yaml).expect("the sandbox is writable");
    }

    /// Writes a file in the work folder; says where.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("the sandbox is writable");
        fs::write(&path, text).expect("the sandbox is writable");
        path
    }

    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        let path = self.work().join(name);
        match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => panic!("cannot read {}: {error}", path.display()),
        }
    }

    /// Copies the files of `from` and below, with their modes, to `name` in the work folder; says where.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.work().join(name);
        for entry in WalkDir::new(from) {
            let entry = entry.expect("the project's files are readable");
            let target = to.join(entry.path().strip_prefix(from).expect("it was found below"));
            if entry.file_type().is_dir() {
                fs::create_dir_all(&target).expect("the sandbox is writable");
            } else {
                fs::copy(entry.path(), &target).expect("the project's files are readable");
            }
        }
        to
    }

    /// The binary at home here.
    pub fn dvrun(&self) -> Command {
        let mut command = dvrun();
        command
            .current_dir(self.work())
            .env("HOME", self.home())
            .env("DVRUN_CACHE", self.cache())
            .env("TMPDIR", self.path.join("tmp"))
            .arg("--config")
            .arg(self.path.join("config.yaml"));
        command
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let Some(root) = self.root.take() else { return };
        if std::thread::panicking() && std::env::var_os("DVRUN_TEST_KEEP").is_some() {
            eprintln!("kept: {}", root.keep().display());
            return;
        }
        // Unpacked images have folders that their owner may not write; each is opened before it is entered.
        for entry in WalkDir::new(root.path()).into_iter().flatten() {
            if entry.file_type().is_dir() {
                make_writable(entry.path());
            }
        }
        if let Err(error) = root.close() {
            eprintln!("left behind: {error}");
        }
    }
}

fn make_writable(folder: &Path) {
    if let Err(error) = fs::set_permissions(folder, fs::Permissions::from_mode(0o700)) {
        eprintln!("cannot open {}: {error}", folder.display());
    }
}
