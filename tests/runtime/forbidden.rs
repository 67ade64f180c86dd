//! Settings of a host that keep ordinary users from making namespaces. They are the whole machine's: only one of the tests' own
//! (`tests/kernels`) has them changed.

use std::fs;
use std::process::Command;

use super::fixture::{Fixture, set_mode};
use crate::support::{Sandbox, as_root, finish};

/// Set while the test goes on, and then as it was.
struct Setting {
    file: String,
    before: String,
}

impl Setting {
    /// `None` where the kernel has no such setting.
    fn to(name: &str, value: &str) -> Option<Setting> {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let before = fs::read_to_string(&file).ok()?;
        fs::write(&file, value).expect("root may change it");
        Some(Setting { file, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(&self.file, self.before.trim()).expect("root may change it");
    }
}

#[test]
fn the_setting_that_forbids_containers_is_named_and_found_beforehand_as_root() {
    if !as_root() || std::env::var_os("DVRUN_TEST_MACHINE").is_none() {
        return;
    }
    let (fixture, sandbox) = (Fixture::complete(), Sandbox::new());
    set_mode(fixture.folder.path(), 0o755);
    finish(Command::new("chmod").args(["-R", "a+rwX"]).arg(sandbox.path())).ok();
    let root = fixture.root().display().to_string();
    let dvrun = |arguments: &[&str]| {
        let dvrun = sandbox.dvrun();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "4321", "--regid", "4321", "--clear-groups"]);
        command.arg(dvrun.get_program()).args(dvrun.get_args()).args(arguments);
        for (name, value) in dvrun.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.current_dir(sandbox.work());
        finish(&mut command)
    };
    let works = || {
        dvrun(&["exec", &root, "--", "true"]).ok();
        dvrun(&["doctor"]).ok().says("ok    containers");
    };
    works();
    for (name, forbidding, wanted) in [
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "15000"),
    ] {
        // Debian's kernels have the first.
        let setting = Setting::to(name, forbidding).unwrap_or_else(|| panic!("this kernel has no {name}"));
        let (what, hint) = (
            format!("{name} is {forbidding}"),
            format!("`sysctl -w {name}={wanted}` on every node"),
        );
        let told = dvrun(&["exec", &root, "--", "true"]).exits(3);
        told.complains(&what)
            .complains(&hint)
            .complains("Apptainer")
            .complains("image: none");
        dvrun(&["doctor"]).exits(1).says("FAIL  containers").says(&what).says(&hint);
        drop(setting);
        works();
    }
}
