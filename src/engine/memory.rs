//! Whether processes of this task were killed for want of memory: the kernel counts that for each control group.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::unistd::Pid;

/// The count of this process's control group, kept open: tasks that share the group look at it again and again.
pub(super) struct Counter(Option<File>);

impl Counter {
    /// Of the group that this process is in now. Where the kernel keeps no count, nothing was ever killed.
    pub fn open() -> Counter {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Counter(counter(&groups, Path::new("/sys/fs/cgroup")))
    }

    fn count(&self) -> u64 {
        self.0.as_ref().and_then(read).unwrap_or(0)
    }
}

/// The count as it stood at some moment.
pub(super) struct Kills<'a> {
    counter: &'a Counter,
    before: u64,
}

impl Kills<'_> {
    /// As it stands now.
    pub fn now(counter: &Counter) -> Kills<'_> {
        Kills {
            before: counter.count(),
            counter,
        }
    }

    /// How many were killed since.
    pub fn since(&self) -> u64 {
        self.counter.count().saturating_sub(self.before)
    }
}

/// The file with the count of the group that `groups` (`/proc/self/cgroup`) names: version 2, else version 1.
fn counter(groups: &str, root: &Path) -> Option<File> {
    let files = groups.lines().filter_map(|line| {
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
    files
        .rev()
        .filter_map(|file| File::open(file).ok())
        .find(|file| read(file).is_some())
}

fn read(file: &File) -> Option<u64> {
    // Longer than either file.
    let mut text = [0; 512];
    let length = file.read_at(&mut text, 0).ok()?;
    let text = str::from_utf8(&text[..length]).ok()?;
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
        };
        write(
            "memory/slurm/job_7/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        );
        write("system/job_7/memory.events", "low 0\noom 3\noom_kill 4\n");
        let old = Counter(counter("9:cpu,memory:/slurm/job_7\n1:name=systemd:/\n", root.path()));
        assert_eq!(old.count(), 2);
        let new = Counter(counter("0::/system/job_7\n", root.path()));
        assert_eq!(new.count(), 4);
        let none = Counter(counter("0::/elsewhere\nnonsense\n", root.path()));
        assert!(none.0.is_none() && none.count() == 0);
        let kills = Kills::now(&new);
        assert_eq!(kills.since(), 0);
        write("system/job_7/memory.events", "low 0\noom 9\noom_kill 10\n");
        assert_eq!(kills.since(), 6);
    }
}
