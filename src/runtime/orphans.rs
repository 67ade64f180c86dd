//! What a program leaves behind, where no PID namespace of its own ends it.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

/// From now on a process below this one whose parent dies becomes this one's child, and no other's.
pub fn adopt() -> nix::Result<()> {
    prctl::set_child_subreaper(true)
}

/// Kills and reaps all children, those that are adopted meanwhile too.
pub fn end() -> io::Result<()> {
    loop {
        for child in children()? {
            match kill(child, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The kernel's own list of them is an option of its configuration (CONFIG_PROC_CHILDREN): this asks every process.
fn children() -> io::Result<Vec<Pid>> {
    let mine = getpid().to_string();
    let numbers = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_mine = |&pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| parent(&stat) == Some(&mine));
    Ok(numbers.filter(is_mine).map(Pid::from_raw).collect())
}

/// The parent in a line of `/proc/PID/stat` (proc_pid_stat(5)): the second field after the name, which may contain anything.
fn parent(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_stands_after_the_name() {
        assert_eq!(parent("31 (a) S 7) (b) R 12 31 31 0"), Some("12"));
        assert_eq!(parent("31"), None);
    }
}
