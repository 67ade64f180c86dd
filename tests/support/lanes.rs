//! What a machine may lack: each is looked for once, by name, and its absence is said aloud.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::checkout;

/// Whether a test may go on. What is not available is said on standard error (past libtest's capture), and is a
/// failure under `CI=true`, where everything is to be there.
#[track_caller]
pub fn lane(name: &str, available: bool) -> bool {
    if available {
        return true;
    }
    assert!(
        env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{name} is missing, and CI=true allows no skipping"
    );
    let line = format!("skipped: {name}\n");
    io::stderr().write_all(line.as_bytes()).expect("standard error is open");
    false
}

/// Whether ordinary users can have overlay file systems: since Linux 5.11. What a kernel should have and has not is a failure.
pub fn overlays() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is there");
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 11)
}

/// Whether a test that only root can do may go on. Such a test's name ends in `_as_root`: `tests/run` runs these a second
/// time, as root, so that the ordinary user's run leaves them out without a word of skipping.
pub fn as_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Fails where root would make a test prove nothing.
#[track_caller]
pub fn assert_ordinary_user() {
    assert!(
        !nix::unistd::geteuid().is_root(),
        "this test shows what an ordinary user sees, and this is root: run tests/run, or the tests as another user"
    );
}

/// The folder of real reads and of the real image's recipe: `DVRUN_SHARED`, or `shared` beside the checkout.
pub fn shared() -> Option<PathBuf> {
    let folder = env::var_os("DVRUN_SHARED").map_or_else(|| checkout().join("../shared"), PathBuf::from);
    lane(
        "shared data: neither DVRUN_SHARED nor ../shared",
        folder.join("real/build-image.sh").is_file(),
    )
    .then_some(folder)
}

/// An OCI layout with a real image of three layers, tagged `genomics`: `DVRUN_TEST_GENOMICS`.
pub fn genomics() -> Option<PathBuf> {
    let layout = env::var_os("DVRUN_TEST_GENOMICS").map(PathBuf::from);
    let there = layout.as_ref().is_some_and(|layout| layout.join("index.json").is_file());
    if lane("genomics image: no OCI layout in DVRUN_TEST_GENOMICS", there) {
        layout
    } else {
        None
    }
}

/// The configuration of a running SLURM cluster whose controller answers: `SLURM_CONF`.
pub fn slurm() -> Option<PathBuf> {
    let conf = env::var_os("SLURM_CONF").map(PathBuf::from);
    let answers = conf.is_some() && succeeds(Command::new("sinfo").arg("--noheader"));
    if lane("slurm: no cluster at SLURM_CONF", answers) {
        conf
    } else {
        None
    }
}

/// Whether `command` can be started and ends well.
pub(super) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
