//! A program on the host itself: its own process group, and it dies with the thread that started it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Starts `command` as the leader of a new process group, so that a Ctrl-C at the terminal reaches dvrun alone and
/// one signal reaches all of the program. Should the calling thread end first, by `kill -9` for instance, the kernel
/// ends the program: the caller must therefore wait for it on the same thread.
///
/// # Errors
/// As [`Command::spawn`].
pub fn spawn_host(command: &mut Command) -> io::Result<Child> {
    let parent = nix::unistd::getpid();
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl and getppid.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if nix::unistd::getppid() != parent {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(())
        });
    }
    command.spawn()
}
