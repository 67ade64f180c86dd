//! Names of stages, parameters, images and data sets.

use super::super::problem::Problems;
use super::super::raw::Key;
use super::fields::shown;

const LONGEST: usize = 64;

/// `[A-Za-z][A-Za-z0-9_-]*`, at most 64 characters.
pub fn valid(name: &str) -> bool {
    name.len() <= LONGEST
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Reports a key that cannot be the name of `what`.
pub fn check(key: &Key, what: &str, problems: &mut Problems) {
    if !valid(&key.text) {
        problems.add(
            key.span.clone(),
            format!(
                "`{}` cannot be the name of {what}: a letter, then letters, digits, `_` and `-`, at most {LONGEST}",
                shown(&key.text)
            ),
        );
    }
}
