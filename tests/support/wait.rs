//! Waiting for something to become true, never for time to pass.

use std::thread;
use std::time::{Duration, Instant};

/// Returns as soon as `condition` holds; fails, naming `what`, when it does not within `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
