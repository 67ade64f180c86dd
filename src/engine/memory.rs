//! Whether processes of this task were killed for want of memory: the kernel counts that for each control group.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// The count as it stood at some moment, and where it is read.
pub(super) struct Kills {
    file: Option<PathBuf>,
    before: u64,
}

impl Kills {
    /// As it stands now. Where the kernel keeps no count, nothing was ever killed.
    pub fn now() -> Kills {
        let file = counter(
            &fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
            Path::new("/sys/fs/cgroup"),
        );
        Kills {
            before: file.as_deref().and_then(read).unwrap_or(0),
            file,
        }
    }

    /// How many were killed since.
    pub fn since(&self) -> u64 {
        self.file.as_deref().and_then(read).unwrap_or(0).saturating_sub(self.before)
    }
}

/// The file with the count of the group that `groups` (`/proc/self/cgroup`) names: version 2, else version 1.
fn counter(groups: &str, root: &Path) -> Option<PathBuf> {
    let mut files = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        if controllers.is_empty() {
            Some(root.join(group).join("memory.events"))
        } else if controllers.split(',').any(|name| name == "memory") {
            Some(root.join("memory").join(group).join("memory.oom_control"))
        } else {
            None
        }
    });
    files.rfind(|file| read(file).is_some())
}

fn read(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Has the kernel kill this process, and what it starts from now on, before this program: who watches must live to tell.
pub(super) fn goes_first(pid: Pid) {
    // A kernel that does not let us kills by size alone, which is right nearly always.
    fs::write(format!("/proc/{}/oom_score_adj", pid.as_raw().abs()), "500").unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_either_version() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let old = write(
            "memory/slurm/job_7/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        );
        let new = write("system/job_7/memory.events", "low 0\noom 3\noom_kill 4\n");
        let found = counter("9:cpu,memory:/slurm/job_7\n1:name=systemd:/\n", root.path());
        assert_eq!((found.as_ref(), found.as_deref().and_then(read)), (Some(&old), Some(2)));
        let found = counter("0::/system/job_7\n", root.path());
        assert_eq!((found.as_ref(), found.as_deref().and_then(read)), (Some(&new), Some(4)));
        assert_eq!(counter("0::/elsewhere\nnonsense\n", root.path()), None);
    }
}
