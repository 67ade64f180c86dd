//! Which images nobody wants any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use super::prune::space_of;
use super::{Prune, Removal, Space, Store, StoreError, StoredImage};
use crate::oci::Source;

/// An image that goes, and what it takes up.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruned {
    pub image: StoredImage,
    pub space: Space,
}

impl Store {
    /// Deletes images that nobody has used for longer than `age`, but of each repository the `keep` that were converted last, and
    /// those that somebody runs or converts at this moment.
    ///
    /// # Errors
    /// What the file system says.
    pub fn prune_images(&self, age: Duration, keep: usize, mode: Prune) -> Result<Vec<Pruned>, StoreError> {
        let images = self.images()?;
        let kept = newest(&images, keep);
        let now = SystemTime::now();
        let mut pruned = Vec::new();
        for (at, image) in images.iter().enumerate() {
            let unused = now.duration_since(image.used()).is_ok_and(|since| since > age);
            if kept.contains(&at) || !unused {
                continue;
            }
            let space = space_of(&image.path)?;
            if mode == Prune::Delete {
                let Some(_lock) = self.try_lock(&Store::image_lock(&image.digest))? else {
                    continue;
                };
                if self.remove_image(&image.digest)? != Removal::Removed {
                    continue;
                }
            }
            pruned.push(Pruned {
                image: image.clone(),
                space,
            });
        }
        Ok(pruned)
    }
}

/// The places in `images`, which are sorted by age, of the last `keep` of each repository.
fn newest(images: &[StoredImage], keep: usize) -> BTreeSet<usize> {
    let mut repositories: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, image) in images.iter().enumerate() {
        for name in &image.info.names {
            let repository = name.parse().map_or_else(|_| name.clone(), |source: Source| source.repository());
            let members = repositories.entry(repository).or_default();
            // By several of its tags.
            if members.last() != Some(&at) {
                members.push(at);
            }
        }
    }
    let last = |members: Vec<usize>| members.into_iter().rev().take(keep);
    repositories.into_values().flat_map(last).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{ImageInfo, Place};
    use super::*;
    use crate::oci::{Digest, ImageConfig};

    fn keep(store: &Store, created: i64, names: &[&str]) -> StoredImage {
        let digest = Digest::sha256(&created.to_le_bytes());
        let draft = store.draft_image().unwrap();
        fs::create_dir(draft.rootfs()).unwrap();
        fs::write(draft.rootfs().join("file"), "x").unwrap();
        let info = ImageInfo {
            manifest: digest.clone(),
            config_digest: digest,
            config: ImageConfig::default(),
            root: Place::Unpacked,
            names: names.iter().map(|&name| name.to_owned()).collect(),
            layers: Vec::new(),
            bytes: 1,
            files: 1,
            notes: Vec::new(),
            created,
            version: "0".into(),
        };
        draft.publish(info).unwrap()
    }

    #[test]
    fn the_last_of_each_repository_stay_and_so_does_what_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let images = [
            keep(&store, 1, &["docker://example.org/lab/a:1"]),
            keep(&store, 2, &["docker://example.org/lab/b:1"]),
            keep(&store, 3, &["docker://example.org/lab/a:2", "docker://example.org/lab/a:latest"]),
            keep(&store, 4, &["docker://example.org/lab/a:3"]),
        ];
        let created = |pruned: Vec<Pruned>| pruned.iter().map(|one| one.image.info.created).collect::<Vec<_>>();
        let prune = |age, keep, mode| created(store.prune_images(age, keep, mode).unwrap());
        let (always, day) = (Duration::ZERO, Duration::from_secs(86_400));
        assert_eq!(prune(day, 0, Prune::Delete), [0; 0], "all are young");
        assert_eq!(prune(always, 2, Prune::Look), [1]);
        assert_eq!(prune(always, 1, Prune::Look), [1, 3], "two tags are one image");
        assert_eq!(store.images().unwrap().len(), 4, "looking deletes nothing");
        let hold = images[0].hold().unwrap();
        assert!(hold.is_some());
        assert_eq!(prune(always, 1, Prune::Delete), [3], "the first is in use");
        drop(hold);
        assert_eq!(prune(always, 1, Prune::Delete), [1]);
        assert_eq!(prune(always, 0, Prune::Delete), [2, 4]);
        assert!(store.images().unwrap().is_empty());
    }
}
