//! Bytes that processes read and wrote, as the kernel counts them for a process and all of its children that were waited for.

use std::fs;

use serde::{Deserialize, Serialize};

/// Bytes of system calls (`rchar` and `wchar` of proc(5)): of files and pipes, cached or not. As Slurm counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Io {
    pub read: u64,
    pub written: u64,
}

impl Io {
    /// Of this process and its past children, so far. `None`: this kernel does not count.
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
