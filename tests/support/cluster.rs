//! A SLURM cluster of a test's own, for what would disturb others, and an ordinary user of it. Only root can bring one up.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Sandbox, checkout, finish, lane, lanes};

/// Debian's `nobody`, and its group.
const NOBODY: u32 = 65_534;

/// Taken down when dropped.
pub struct Cluster {
    dir: PathBuf,
}

impl Cluster {
    /// `slurm/cluster/up` with these options.
    pub fn up(options: &[&str]) -> Option<Cluster> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let there = lanes::succeeds(Command::new("slurmctld").arg("-V"));
        if !lane("slurm daemons: slurmctld is not installed", there) {
            return None;
        }
        // Sockets have short names.
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("slurm-{}-{made}", std::process::id()));
        let cluster = Cluster { dir };
        finish(cluster.script("up").arg(&cluster.dir).args(options)).ok();
        Some(cluster)
    }

    fn script(&self, name: &str) -> Command {
        Command::new(checkout().join("slurm/cluster").join(name))
    }

    /// `kill` or `start` one daemon: `slurmctld`, `c1`.
    #[track_caller]
    pub fn daemon(&self, name: &str, what: &str) {
        finish(self.script("daemon").arg(&self.dir).args([name, what])).ok();
    }

    pub fn conf(&self) -> PathBuf {
        self.dir.join("slurm.conf")
    }

    /// Where the controller keeps what it must not forget.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A command of Slurm's, as root.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.conf());
        command
    }

    /// A sandbox of the ordinary user's.
    pub fn sandbox(&self) -> Sandbox {
        let sandbox = Sandbox::new();
        // Nobody has no login environment to be made on a node.
        sandbox.config("profile: site\nprofiles: {site: {slurm: {export: nil}}}\n");
        self.give(sandbox.path());
        sandbox
    }

    /// What root wrote becomes the ordinary user's.
    pub fn give(&self, path: &Path) {
        finish(Command::new("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(path)).ok();
    }

    /// dvrun as the ordinary user, in the sandbox's work folder.
    pub fn dvrun(&self, sandbox: &Sandbox, words: &[&str]) -> Command {
        let mut command = sandbox.dvrun();
        command.args(words).env("SLURM_CONF", self.conf()).uid(NOBODY).gid(NOBODY);
        command
    }

    /// Another program, in the same place and the same way.
    pub fn command_of_user(&self, sandbox: &Sandbox, program: &str) -> Command {
        let dvrun = self.dvrun(sandbox, &[]);
        let mut command = Command::new(program);
        command.env_clear().current_dir(sandbox.work()).uid(NOBODY).gid(NOBODY);
        command.envs(dvrun.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = self.script("down").arg(&self.dir).status();
        if !down.is_ok_and(|status| status.success()) {
            eprintln!("the cluster in {} could not be taken down", self.dir.display());
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("left behind: {error}");
        }
    }
}
