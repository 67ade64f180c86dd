//! Whether this host can do it: a container that does nothing is tried.

use std::path::{Path, PathBuf};

use super::container::{Container, MissingCwd, Mount, Root, User, Writable};
use super::error::RuntimeError;
use super::spawn::{Stdio, Stream, spawn};

/// Runs this very program, which prints its version and ends, in a container of nothing else.
///
/// # Errors
/// What a container of the caller's would fail with.
pub fn try_container(exe: &Path, empty: &Path, writable: Writable) -> Result<(), RuntimeError> {
    let program = PathBuf::from("/dvrun");
    let container = Container {
        root: Root::Folder(empty.to_owned()),
        writable,
        binds: vec![Mount {
            source: exe.to_owned(),
            target: program.clone(),
            read_only: true,
        }],
        env: Vec::new(),
        cwd: "/".into(),
        missing_cwd: MissingCwd::Refuse,
        argv: vec![program.display().to_string(), "--version".to_owned()],
        user: User::Caller,
        scratch: None,
        home: "/home/user".into(),
        hostname: None,
        read_ahead: None,
    };
    let stdio = Stdio {
        stdin: Stream::Null,
        stdout: Stream::Null,
        stderr: Stream::Null,
    };
    let ended = spawn(exe, &container, stdio)?.wait();
    match ended {
        Ok(exit) if exit.status.success() => Ok(()),
        Ok(_) | Err(_) => Err(RuntimeError::Lost),
    }
}
