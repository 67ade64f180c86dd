//! Whether two declared outputs can be the same file. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Places on disk, as declared: paths and globs, absolute.
#[derive(Debug, Default)]
pub(super) struct Places {
    paths: BTreeSet<PathBuf>,
    globs: Vec<glob::Pattern>,
}

impl Places {
    /// Adds one output's pattern. One that is no glob names no place.
    pub fn add(&mut self, pattern: &str) {
        if !is_glob(pattern) {
            self.paths.insert(pattern.into());
        } else if let Ok(glob) = glob::Pattern::new(pattern) {
            self.globs.push(glob);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.globs.is_empty()
    }

    /// Whether `pattern` may name what lies at one of these places, above one or below one. Two globs are compared by
    /// the folder that they begin in: too often yes, never wrongly no.
    pub fn meets(&self, pattern: &str) -> bool {
        let path = Path::new(literal(pattern));
        let inside = path.ancestors().any(|folder| self.paths.contains(folder));
        let around = self
            .paths
            .range(path.to_owned()..)
            .next()
            .is_some_and(|next| next.starts_with(path));
        inside
            || around
            || self.globs.iter().any(|glob| {
                let folder = Path::new(literal(glob.as_str()));
                glob.matches(pattern) || folder.starts_with(path) || (is_glob(pattern) && path.starts_with(folder))
            })
    }
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// The pattern itself, or the folder that its first wildcard is in.
fn literal(pattern: &str) -> &str {
    match pattern.find(['*', '?', '[']) {
        Some(end) => &pattern[..pattern[..end].rfind('/').unwrap_or(0)],
        None => pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_place_by_other_words_is_found() {
        let mut places = Places::default();
        assert!(places.is_empty());
        for pattern in ["/w/a.vcf", "/w/isec/0000.vcf", "/w/shards/*.bam"] {
            places.add(pattern);
        }
        for same in [
            "/w/a.vcf",
            "/w/isec",
            "/w/isec/0000.vcf",
            "/w/*.vcf",
            "/w/shards",
            "/w/shards/7.bam",
            "/w/shards/?.bam",
        ] {
            assert!(places.meets(same), "{same}");
        }
        for other in [
            "/w/a.vcf.gz",
            "/w/b.vcf",
            "/w/isec/0001.vcf",
            "/x/*.vcf",
            "/w/shards-2/7.bam",
            "/w/ise",
        ] {
            assert!(!places.meets(other), "{other}");
        }
    }
}
