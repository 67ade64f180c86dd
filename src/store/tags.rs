//! What a tag meant when it was last asked. Asking at each run would use up a registry's quota, and tie every run to
//! the network.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::oci::Digest;

/// An answer of the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tag {
    /// What was asked: the whole reference, with host.
    pub reference: String,
    /// What a registry answered: an index's digest or a manifest's.
    pub digest: Digest,
    /// When.
    pub asked: Timestamp,
}

impl Tag {
    /// Whether the answer is younger than `ttl`. One from the future, from a clock that was wrong, is not.
    pub fn is_fresh(&self, now: Timestamp, ttl: Duration) -> bool {
        let age = now.duration_since(self.asked);
        !age.is_negative() && age.unsigned_abs() < ttl
    }
}

impl Store {
    /// What `reference` was last; `None` where it is unknown or its file damaged.
    pub fn tag(&self, reference: &str) -> Result<Option<Tag>, StoreError> {
        let path = self.tag_file(reference);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::at("read", &path)(error)),
        };
        // Only a cache: what cannot be read is asked again.
        let tag = serde_json::from_slice(&bytes).ok();
        Ok(tag.filter(|tag: &Tag| tag.reference == reference))
    }

    pub fn set_tag(&self, tag: &Tag) -> Result<(), StoreError> {
        let folder = self.tags();
        fs::create_dir_all(&folder).map_err(StoreError::at("create", &folder))?;
        let path = self.tag_file(&tag.reference);
        let json = serde_json::to_vec(tag).expect("a tag has only texts in it");
        let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(StoreError::at("create a file in", &folder))?;
        file.write_all(&json)
            .and_then(|()| file.as_file().sync_all())
            .map_err(StoreError::at("write", file.path()))?;
        file.persist(&path).map_err(|error| StoreError::at("create", &path)(error.error))?;
        Ok(())
    }

    fn tag_file(&self, reference: &str) -> PathBuf {
        // A reference has characters that a file name must not have, and may be longer than one.
        self.tags().join(format!("{}.json", Digest::sha256(reference.as_bytes()).hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_and_age() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let asked = Timestamp::from_second(1_000_000).unwrap();
        let tag = Tag {
            reference: "docker.io/library/debian:12".to_owned(),
            digest: Digest::sha256(b"x"),
            asked,
        };
        assert_eq!(store.tag(&tag.reference).unwrap(), None);
        store.set_tag(&tag).unwrap();
        assert_eq!(store.tag(&tag.reference).unwrap(), Some(tag.clone()));
        assert_eq!(store.tag("docker.io/library/debian:13").unwrap(), None);
        let ttl = Duration::from_secs(60);
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).unwrap();
        assert!(tag.is_fresh(at(59), ttl));
        assert!(!tag.is_fresh(at(60), ttl));
        assert!(!tag.is_fresh(at(-1), ttl), "from the future");
        fs::write(store.tag_file(&tag.reference), b"{").unwrap();
        assert_eq!(store.tag(&tag.reference).unwrap(), None, "a damaged file is no answer");
    }
}
