//! Images in one tar file: an OCI layout (`oci-archive:`), or what `docker save` writes (`docker-archive:`, Docker's
//! "image tarball": `manifest.json`, configurations, layers). The second is described as if it were the first, so that
//! nothing after this knows the difference.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::layout::REF_NAME;
use super::{RegistryError, layout};
use crate::oci::{Descriptor, Digest, Hasher, ImageConfig, Index, MANIFEST_MAX, Reference};

const MEMBERS_MAX: usize = 100_000;
const CONFIG_MAX: u64 = 16 << 20;

/// What lies in an archive, and where.
pub(super) struct Archive {
    path: PathBuf,
    /// An OCI layout's `index.json`.
    index: Vec<u8>,
    /// Documents that are not in the file, but follow from it.
    made: HashMap<Digest, Vec<u8>>,
    blobs: HashMap<Digest, Member>,
}

/// A member's bytes in the file.
#[derive(Clone, Copy)]
struct Member {
    offset: u64,
    size: u64,
}

/// One image of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

type Members = HashMap<PathBuf, Member>;

impl Archive {
    /// Reads the headers. Blocks.
    pub(super) fn open(path: &Path) -> Result<Archive, RegistryError> {
        let mut file = File::open(path).map_err(RegistryError::io("open", path))?;
        let members = members(&mut file, path)?;
        let mut archive = Archive {
            path: path.to_owned(),
            index: Vec::new(),
            made: HashMap::new(),
            blobs: HashMap::new(),
        };
        if let Some(index) = members.get(Path::new("index.json")) {
            archive.index = read(&mut file, path, *index, MANIFEST_MAX)?;
            for (name, member) in &members {
                archive.blobs.extend(blob_name(name).map(|digest| (digest, *member)));
            }
            return Ok(archive);
        }
        let Some(manifest) = members.get(Path::new("manifest.json")) else {
            return Err(damaged(path, "it has neither `index.json` nor `manifest.json`"));
        };
        let saved = read(&mut file, path, *manifest, MANIFEST_MAX)?;
        let saved: Vec<Saved> = serde_json::from_slice(&saved).map_err(|_| damaged(path, "its manifest.json cannot be read"))?;
        let mut entries = Vec::new();
        for image in &saved {
            entries.extend(archive.describe(&mut file, &members, image)?);
        }
        archive.index = json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes();
        Ok(archive)
    }

    /// A saved image's entries in the index that there would be: one for each of its tags.
    fn describe(&mut self, file: &mut File, members: &Members, image: &Saved) -> Result<Vec<Value>, RegistryError> {
        let path = self.path.clone();
        let find = |name: &str| {
            let member = members.get(&plain(Path::new(name))).copied();
            member.ok_or_else(|| damaged(&path, "a file that its manifest.json names is missing"))
        };
        let config_member = find(&image.config)?;
        let bytes = read(file, &path, config_member, CONFIG_MAX)?;
        let config: ImageConfig = serde_json::from_slice(&bytes).map_err(|_| damaged(&path, "a configuration in it cannot be read"))?;
        let config_digest = Digest::sha256(&bytes);
        self.blobs.insert(config_digest.clone(), config_member);
        if config.rootfs.diff_ids.len() != image.layers.len() {
            return Err(damaged(&path, "its layers are not those of the configuration"));
        }
        let mut layers = Vec::new();
        for (name, diff_id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
            let member = find(name)?;
            // Saved layers are plain: what the configuration says of them is the blob's own sum, verified when it is read.
            let digest = match blob_name(Path::new(name)) {
                Some(digest) => digest,
                None => diff_id.clone(),
            };
            layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": member.size}));
            self.blobs.insert(digest, member);
        }
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_member.size});
        let manifest = json!({"schemaVersion": 2, "mediaType": layout::MANIFEST, "config": config, "layers": layers});
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::sha256(&manifest);
        let entry = |tag: Option<&String>| {
            let mut entry = json!({"mediaType": layout::MANIFEST, "digest": digest, "size": manifest.len()});
            if let Some(tag) = tag {
                entry["annotations"] = json!({REF_NAME: whole_name(tag)});
            }
            entry
        };
        let tags = image.repo_tags.as_deref().unwrap_or_default();
        let entries = if tags.is_empty() {
            vec![entry(None)]
        } else {
            tags.iter().map(|tag| entry(Some(tag))).collect()
        };
        self.made.insert(digest, manifest);
        Ok(entries)
    }

    /// As [`layout::index`].
    pub(super) fn index(&self, tag: Option<&str>) -> Result<Index, RegistryError> {
        // `docker save` has whole names for tags, which people do not always write whole.
        let whole = tag.filter(|_| !self.made.is_empty()).map(whole_name);
        layout::select(&self.index, &self.path, whole.as_deref().or(tag))
    }

    /// A small blob; `None` where it is missing or damaged. Blocks.
    pub(super) fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        if let Some(bytes) = self.made.get(digest) {
            return Ok(Some(bytes.clone()));
        }
        let Some(member) = self.blobs.get(digest).filter(|member| member.size <= limit) else {
            return Ok(None);
        };
        let mut file = File::open(&self.path).map_err(RegistryError::io("open", &self.path))?;
        let bytes = read(&mut file, &self.path, *member, limit)?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        Ok((hasher.finish() == *digest).then_some(bytes))
    }

    /// Copies a blob to the file `to`, verified and synced. Blocks.
    pub(super) fn extract(&self, blob: &Descriptor, image: &str, to: &Path) -> Result<(), RegistryError> {
        let wrong = || RegistryError::LayoutBlob {
            image: image.to_owned(),
            digest: blob.digest.clone(),
        };
        let member = self
            .blobs
            .get(&blob.digest)
            .filter(|member| member.size == blob.size)
            .ok_or_else(wrong)?;
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(RegistryError::io("create", folder))?;
        }
        let mut from = File::open(&self.path).map_err(RegistryError::io("open", &self.path))?;
        from.seek(SeekFrom::Start(member.offset))
            .map_err(RegistryError::io("read", &self.path))?;
        let mut from = from.take(member.size);
        let mut file = File::create(to).map_err(RegistryError::io("create", to))?;
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = from.read(&mut buffer).map_err(RegistryError::io("read", &self.path))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            file.write_all(&buffer[..read]).map_err(RegistryError::io("write", to))?;
        }
        if hasher.finish() != blob.digest {
            fs::remove_file(to).map_err(RegistryError::io("remove", to))?;
            return Err(wrong());
        }
        file.sync_all().map_err(RegistryError::io("write", to))
    }
}

/// All members that are files, by their plain names; links among them (old `docker save` shares layers so) resolved.
fn members(file: &mut File, path: &Path) -> Result<Members, RegistryError> {
    let mut magic = Vec::new();
    Read::by_ref(file)
        .take(4)
        .read_to_end(&mut magic)
        .map_err(RegistryError::io("read", path))?;
    if magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd] {
        return Err(RegistryError::Compressed { path: path.to_owned() });
    }
    file.seek(SeekFrom::Start(0)).map_err(RegistryError::io("read", path))?;
    let unreadable = |source: io::Error| RegistryError::Io {
        doing: "read the archive",
        path: path.to_owned(),
        source,
    };
    let mut found = Members::new();
    let mut links = Vec::new();
    let mut archive = tar::Archive::new(file);
    for (count, entry) in archive.entries_with_seek().map_err(unreadable)?.enumerate() {
        if count == MEMBERS_MAX {
            return Err(damaged(path, "it has more than 100,000 members"));
        }
        let entry = entry.map_err(unreadable)?;
        let name = plain(&entry.path().map_err(unreadable)?);
        if entry.header().entry_type().is_file() {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            found.insert(name, Member { offset, size });
        } else if let Some(target) = entry.link_name().map_err(unreadable)? {
            let from = if entry.header().entry_type().is_symlink() {
                name.parent()
            } else {
                None
            };
            links.push((plain(&from.unwrap_or(Path::new("")).join(target)), name));
        }
    }
    for (target, name) in links {
        if let Some(member) = found.get(&target).copied() {
            found.insert(name, member);
        }
    }
    Ok(found)
}

/// A name without `.` and `..`: only a key here, never a path on this machine.
fn plain(name: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => plain.push(part),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}

fn whole_name(tag: &str) -> String {
    tag.parse::<Reference>()
        .map_or_else(|_| tag.to_owned(), |reference| reference.to_string())
}

/// `blobs/ALGORITHM/HEX`.
fn blob_name(name: &Path) -> Option<Digest> {
    let name = plain(name);
    let (algorithm, hex) = name.to_str()?.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

fn read(file: &mut File, path: &Path, member: Member, limit: u64) -> Result<Vec<u8>, RegistryError> {
    if member.size > limit {
        return Err(damaged(path, "a document in it is too long"));
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(member.offset))
        .and_then(|_| file.take(member.size).read_to_end(&mut bytes))
        .map_err(RegistryError::io("read", path))?;
    Ok(bytes)
}

fn damaged(path: &Path, why: &'static str) -> RegistryError {
    RegistryError::Archive {
        path: path.to_owned(),
        why,
    }
}
