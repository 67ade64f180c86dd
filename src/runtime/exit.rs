//! How a contained program ended, and what it used.

use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The end of a program.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    pub status: Status,
    pub usage: Usage,
}

/// How the program itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Exited(i32),
    /// By the signal of this number.
    Signaled(i32),
}

impl Status {
    /// As a shell reports it: the exit status, or 128 + the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Status::Exited(code) => code,
            Status::Signaled(signal) => 128 + signal,
        }
    }

    pub fn success(self) -> bool {
        self == Status::Exited(0)
    }
}

/// What the program and all processes that it waited for used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// From the program's start to its end.
    pub wall: Duration,
    /// User and system time.
    pub cpu: Duration,
    /// Peak resident memory of the largest process, bytes.
    pub max_rss: u64,
    /// `None` where it was not counted.
    #[serde(default)]
    pub io: Option<Io>,
}

/// Bytes of system calls (`rchar` and `wchar` of proc(5)): of files and pipes, cached or not. As Slurm counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    pub read: u64,
    pub written: u64,
}

impl Io {
    /// Of this process and all of its children that it waited for, so far. `None`: this kernel does not count.
    pub fn now() -> Option<Io> {
        parse(&fs::read_to_string("/proc/self/io").ok()?)
    }

    /// What came since.
    pub fn since(before: Option<Io>) -> Option<Io> {
        let (before, now) = (before?, Io::now()?);
        Some(Io {
            read: now.read.saturating_sub(before.read),
            written: now.written.saturating_sub(before.written),
        })
    }
}

fn parse(text: &str) -> Option<Io> {
    let number = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some(Io {
        read: number("rchar:")?,
        written: number("wchar:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_the_kernels_numbers() {
        let text = "rchar: 12\nwchar: 34\nsyscr: 1\nread_bytes: 4096\n";
        assert_eq!(parse(text), Some(Io { read: 12, written: 34 }));
        assert_eq!(parse("rchar: x\nwchar: 3\n"), None);
        assert_eq!(Io::since(None), None);
    }
}
