//! A terminal with a person at it.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::pty::Winsize;

/// The person's side.
pub struct Terminal {
    keys: File,
    lines: Lines<BufReader<File>>,
    /// The other side, open for as long as this.
    pub programs: OwnedFd,
}

impl Terminal {
    /// Of a size, if that matters.
    pub fn new<'a>(size: impl Into<Option<&'a Winsize>>) -> Terminal {
        let pair = nix::pty::openpty(size.into(), None).expect("a terminal");
        let keys = File::from(pair.master);
        let lines = BufReader::new(keys.try_clone().expect("a descriptor")).lines();
        let programs = pair.slave;
        Terminal { keys, lines, programs }
    }

    /// Starts `command` as the first of a session on this terminal.
    pub fn start(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.programs.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: setsid and ioctl may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::Error::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        command.spawn().expect("it starts")
    }

    pub fn resize(&self, size: &Winsize) {
        // SAFETY: the structure that the request reads, alive during the call.
        let done = unsafe { libc::ioctl(self.keys.as_raw_fd(), libc::TIOCSWINSZ, &raw const *size) };
        assert_eq!(done, 0, "a terminal has a size");
    }

    pub fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Reads until a line ends with `wanted`. The echo of what was typed is a line too.
    pub fn until(&mut self, wanted: &str) {
        while !self.lines.next().expect("a line").expect("a line").trim_end().ends_with(wanted) {}
    }
}
