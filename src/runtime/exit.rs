//! How a contained program ended, and what it used.

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
}
