//! The caller's side of a container's terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::sys;

/// The near end of a terminal whose far end is the program's. Dropping it hangs the program up.
#[derive(Debug)]
pub struct Terminal(File);

/// Rows and columns of the terminal at `fd`.
///
/// # Errors
/// ENOTTY when it is none.
pub fn size_of(fd: impl AsFd) -> io::Result<(u16, u16)> {
    Ok(sys::window_size(fd)?)
}

impl Terminal {
    pub(super) fn new(fd: OwnedFd) -> Terminal {
        Terminal(fd.into())
    }

    /// Gives it a new size (rows, columns); the program gets SIGWINCH.
    pub fn resize(&self, size: (u16, u16)) -> io::Result<()> {
        Ok(sys::set_window_size(&self.0, size)?)
    }

    /// Copies what is typed at `input` and what the program shows to `output` until the program's end, which is when no
    /// process holds the far end any more. Whenever `resized`, which must not end before, has
    /// something to read, the size of `input` is passed on.
    pub fn relay(&mut self, input: impl AsFd, output: &mut dyn Write, mut resized: impl Read + AsFd) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&self.0, FcntlArg::F_GETFL)?);
        // A program that does not read must not keep what it writes from being shown.
        fcntl(&self.0, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let mut typed: Vec<u8> = Vec::new();
        let mut input_open = true;
        let mut buffer = [0; 8192];
        loop {
            let near = if typed.is_empty() {
                PollFlags::POLLIN
            } else {
                PollFlags::POLLIN | PollFlags::POLLOUT
            };
            let wanted = if input_open && typed.is_empty() {
                PollFlags::POLLIN
            } else {
                PollFlags::empty()
            };
            let mut ready = [
                PollFd::new(self.0.as_fd(), near),
                PollFd::new(resized.as_fd(), PollFlags::POLLIN),
                PollFd::new(input.as_fd(), wanted),
            ];
            // A file at its end and a closed terminal are always "ready": they are left out.
            let watched = if wanted.is_empty() { &mut ready[..2] } else { &mut ready[..] };
            match poll(watched, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let [near, size, keys] = ready.map(|fd| fd.any().unwrap_or(false));
            if size {
                if resized.read(&mut buffer)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.resize(size_of(&input)?)?;
            }
            if keys && !wanted.is_empty() {
                let length = nix::unistd::read(input.as_fd(), &mut buffer)?;
                input_open = length > 0;
                typed.extend_from_slice(&buffer[..length]);
            }
            if !typed.is_empty() {
                match self.0.write(&typed) {
                    Ok(length) => drop(typed.drain(..length)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            if near {
                match self.0.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(length) => {
                        output.write_all(&buffer[..length])?;
                        output.flush()?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // How Linux says that the far end is closed.
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// While it lives, what is typed at a terminal arrives key by key, unechoed; Ctrl-C, too, is a key. Dropping it restores
/// the terminal.
#[derive(Debug)]
pub struct Raw<'a> {
    fd: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    /// # Errors
    /// ENOTTY when `fd` is no terminal.
    pub fn new(fd: BorrowedFd<'a>) -> io::Result<Raw<'a>> {
        let before = tcgetattr(fd)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(fd, SetArg::TCSADRAIN, &raw)?;
        Ok(Raw { fd, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        tcsetattr(self.fd, SetArg::TCSADRAIN, &self.before).unwrap_or_default();
    }
}
