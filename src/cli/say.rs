//! Saying things to a reader who may have gone away: `dvrun status | head -1` is no reason to panic, and a run whose
//! terminal is closed goes on.
//!
//! The macros of this module stand in for std's in all of the command line.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::Mutex;

use super::failure::{Failure, exit};

/// What kept data from being written to standard output, the first time.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Data, on standard output. A failure is kept for [`finish`].
pub fn out(text: Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        lost(error);
    }
}

/// Data as it is, on standard output.
pub fn bytes(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        lost(error);
    }
}

/// A message, on standard error. Nobody is left to tell that standard error is gone.
pub fn err(text: Arguments<'_>) {
    io::stderr().lock().write_fmt(text).unwrap_or_default();
}

/// Notes that data did not reach standard output. A reader that wants no more is no failure.
pub fn lost(error: io::Error) {
    if error.kind() != io::ErrorKind::BrokenPipe
        && let Ok(mut lost) = LOST.lock()
    {
        lost.get_or_insert(error);
    }
}

/// Whether all data reached standard output.
///
/// # Errors
/// What kept it from that, such as a full disk.
pub fn finish() -> Result<(), Failure> {
    match LOST.lock().ok().and_then(|mut lost| lost.take()) {
        Some(error) => Err(Failure::message(
            exit::INFRASTRUCTURE,
            format!("cannot write to standard output: {error}"),
        )),
        None => Ok(()),
    }
}

macro_rules! print {
    ($($text:tt)*) => { $crate::cli::say::out(format_args!($($text)*)) };
}

macro_rules! println {
    ($($text:tt)*) => { $crate::cli::say::out(format_args!("{}\n", format_args!($($text)*))) };
}

macro_rules! eprint {
    ($($text:tt)*) => { $crate::cli::say::err(format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::say::err(format_args!("{}\n", format_args!($($text)*))) };
}
