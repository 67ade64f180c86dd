//! Real Apptainer for an ordinary user: the host's own, or that of a root folder that lies somewhere.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::lanes::{lane, succeeds};

/// The folder that has `apptainer` in it, for `PATH`. The host's, or one made in `place`, whose program enters the root folder
/// `DVRUN_TEST_PEERS` and is the caller there, with the host's temporary folders and devices at their paths.
pub fn apptainer(place: &Path) -> Option<PathBuf> {
    let program = match env::var_os("DVRUN_TEST_PEERS") {
        Some(root) => entered(Path::new(&root), place),
        None => env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join("apptainer"))
            .find(|program| program.is_file())
            .unwrap_or_else(|| "/nonexistent/apptainer".into()),
    };
    let works = succeeds(Command::new(&program).arg("version"));
    lane("apptainer: neither on PATH nor in DVRUN_TEST_PEERS", works).then(|| program.parent().expect("it lies in a folder").to_owned())
}

/// The root is one mount, programs and all: Apptainer looks for what belongs to it where the kernel says that its program lies.
/// Nodes of a test's cluster are one machine: each gets the `/dev/shm` that it would have.
fn entered(root: &Path, place: &Path) -> PathBuf {
    let folder = place.join("apptainer");
    fs::create_dir(&folder).expect("the place is the test's");
    let program = folder.join("apptainer");
    let text = format!(
        "#!/bin/sh\nshm=/dev/shm\nif [ -n \"$SLURM_NODEID\" ]; then shm='{}'/shm-$SLURM_NODEID; mkdir -p \"$shm\"; fi\n\
         exec bwrap --ro-bind '{}' / --ro-bind /etc/passwd /etc/passwd --ro-bind /etc/group /etc/group --bind /tmp /tmp \
         --bind /var/tmp /var/tmp --bind /run /run --dev-bind /dev /dev --bind \"$shm\" /dev/shm --bind /proc /proc --bind /sys /sys \
         /usr/bin/apptainer \"$@\"\n",
        folder.display(),
        root.display()
    );
    fs::write(&program, text).expect("the place is the test's");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("it was just made");
    program
}
