//! Paths of a workflow, without a look at the disk.

use std::path::{Component, Path, PathBuf};

/// Whether a relative path climbs out of the folder that it starts in, wherever it does so.
pub fn leaves(path: &str) -> bool {
    let mut depth = 0i64;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

/// Whether `..` stands in a path.
pub fn climbs(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

/// `path` against `dir`, without `.` and with `..` taken back by name.
pub fn absolute(dir: &Path, path: &str) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in dir.join(path).components() {
        match part {
            Component::ParentDir => {
                whole.pop();
            }
            Component::CurDir => {}
            other => whole.push(other),
        }
    }
    whole
}
