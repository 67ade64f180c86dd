//! A program run to its end, with the time that it took and the memory that it had.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
pub struct Measured {
    pub took: Duration,
    /// Bytes, of the largest of its processes.
    pub memory: u64,
}

/// `None` where the program is not here. One that fails shows what it said.
pub fn measure(command: &mut Command, dir: &Path) -> Option<Measured> {
    let log = dir.join("log");
    let output = File::create(&log).expect("a file");
    let errors = output.try_clone().expect("a second handle");
    let began = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().ok()?;
    let (mut status, mut used) = (0, unsafe { std::mem::zeroed::<libc::rusage>() });
    // SAFETY: both places are alive during the call; the standard library does not wait for this child.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut used) };
    let took = began.elapsed();
    assert_eq!(waited, child.id() as i32);
    if status != 0 {
        println!(
            "{command:?}: status {status:#x}: {}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
        return None;
    }
    Some(Measured {
        took,
        memory: used.ru_maxrss as u64 * 1024,
    })
}

/// The one in the middle of so many.
pub fn median(rounds: usize, command: &mut Command, dir: &Path) -> Measured {
    middle((0..rounds).map(|_| measure(command, dir).expect("it ends well")).collect())
}

/// The one in the middle of these.
pub fn middle(mut all: Vec<Measured>) -> Measured {
    all.sort_by_key(|measured| measured.took);
    all[all.len() / 2]
}
