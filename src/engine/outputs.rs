//! Declared outputs: found, waited for, removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::store::remove_tree;

/// What can go wrong with outputs.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("`{pattern}` is not a glob")]
    Pattern { pattern: String, source: glob::PatternError },
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("cannot remove the old output {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// The first pattern that nothing matches.
///
/// # Errors
/// A pattern that is no glob, or a folder that cannot be read.
pub fn missing(patterns: &[String]) -> Result<Option<&str>, OutputError> {
    for pattern in patterns {
        if matches(pattern)?.is_empty() {
            return Ok(Some(pattern));
        }
    }
    Ok(None)
}

/// Like [`missing`], but gives a network file system up to `patience` to show what another host has just written:
/// NFS caches a folder's listing, and reading it anew is what refreshes it.
pub fn missing_after(patterns: &[String], patience: Duration) -> Result<Option<&str>, OutputError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        match missing(patterns)? {
            Some(pattern) if start.elapsed() >= patience => return Ok(Some(pattern)),
            Some(_) => std::thread::sleep(pause),
            None => return Ok(None),
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Removes whatever an earlier attempt left at these patterns. A symbolic link is removed, never followed.
///
/// # Errors
/// What exists and cannot be removed.
pub fn remove(patterns: &[String]) -> Result<(), OutputError> {
    for pattern in patterns {
        for path in matches(pattern)? {
            // Programs seal their folders: one that nobody may write to is an old output too.
            remove_tree(&path).map_err(|source| OutputError::Remove { path, source })?;
        }
    }
    Ok(())
}

/// A literal path is looked up, which scales to a hundred thousand tasks; only a real glob lists folders.
fn matches(pattern: &str) -> Result<Vec<PathBuf>, OutputError> {
    if !pattern.contains(['*', '?', '[']) {
        let path = Path::new(pattern);
        return match fs::symlink_metadata(path) {
            Ok(_) => Ok(vec![path.to_owned()]),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
            Err(source) => Err(OutputError::List {
                path: path.to_owned(),
                source,
            }),
        };
    }
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let found = glob::glob_with(pattern, options).map_err(|source| OutputError::Pattern {
        pattern: pattern.to_owned(),
        source,
    })?;
    found
        .map(|path| {
            path.map_err(|error| OutputError::List {
                path: error.path().to_owned(),
                source: error.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pattern(folder: &Path, tail: &str) -> String {
        folder.join(tail).to_str().expect("a UTF-8 temporary folder").to_owned()
    }

    #[test]
    fn finds_and_removes_what_patterns_match_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::create_dir(path.join("isec")).unwrap();
        for name in ["a.vcf", "b.vcf", "keep.txt", "isec/0000.vcf"] {
            fs::write(path.join(name), "x").unwrap();
        }
        fs::set_permissions(path.join("isec"), fs::Permissions::from_mode(0o555)).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), path.join("link")).unwrap();
        let patterns = vec![pattern(path, "*.vcf"), pattern(path, "isec"), pattern(path, "link")];
        assert_eq!(missing(&patterns).unwrap(), None);
        remove(&patterns).unwrap();
        assert_eq!(missing(&patterns).unwrap(), Some(patterns[0].as_str()));
        assert!(path.join("keep.txt").exists() && !path.join("isec").exists() && !path.join("link").exists());
        assert!(outside.path().join("precious").exists());
        remove(&patterns).unwrap();
    }

    #[test]
    fn what_appears_late_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let patterns = vec![pattern(folder.path(), "late")];
        let path = folder.path().join("late");
        std::thread::scope(|scope| {
            scope.spawn(|| fs::write(&path, "x").unwrap());
            assert_eq!(missing_after(&patterns, Duration::from_secs(30)).unwrap(), None);
        });
        assert_eq!(
            missing_after(&[pattern(folder.path(), "never")], Duration::ZERO)
                .unwrap()
                .map(|p| p.ends_with("never")),
            Some(true)
        );
    }
}
