//! A data set's folder: made beside its place, and renamed to it when it is whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tokio::task;

use super::file::{Blob, blob};
use super::location::shown;
use super::{DataError, identity, place, unpack};
use crate::net::{Client, Event, Progress};
use crate::oci::Digest;
use crate::store::Store;
use crate::workflow::{DataFile, DataSet, DataSource};

/// Makes sure that the set is there, and says where. A whole set is not looked at again; `path` must exist.
pub async fn fetch(client: &Client, store: &Store, set: &DataSet, progress: Progress<'_>) -> Result<PathBuf, DataError> {
    let path = place(store, set);
    let files = match &set.source {
        DataSource::Path(_) if path.exists() => return Ok(path),
        DataSource::Path(_) => return Err(DataError::Missing { path }),
        DataSource::Files(files) => files.as_slice(),
        DataSource::Archive(file) => std::slice::from_ref(file),
    };
    if let Some(file) = files.iter().find(|file| !is_file_name(&file.name)) {
        return Err(DataError::Name(file.name.clone()));
    }
    let is_there = || {
        let whole = path.is_dir();
        if whole {
            files.iter().for_each(|file| progress(Event::Present { what: &file.name }));
        }
        whole
    };
    if is_there() {
        return Ok(path);
    }
    let identity = identity(set);
    let waiting = || progress(Event::Waiting { what: identity.short() });
    let _guard = store.lock_async(&format!("data-{}", identity.hex()), waiting).await?;
    if is_there() {
        return Ok(path);
    }
    let blobs: Vec<Blob> = stream::iter(files.iter().map(|file| blob(client, store, file, progress)))
        .buffered(client.options().connections.max(1))
        .try_collect()
        .await?;
    let draft = Draft {
        identity,
        path: path.clone(),
        files: files.to_vec(),
        blobs,
        kind: match &set.source {
            DataSource::Archive(_) => Kind::Archive,
            DataSource::Files(_) | DataSource::Path(_) => Kind::Files,
        },
    };
    let published = task::spawn_blocking(move || publish(&draft)).await;
    published.expect("the thread neither panics nor is cancelled")?;
    Ok(path)
}

struct Draft {
    identity: Digest,
    path: PathBuf,
    files: Vec<DataFile>,
    blobs: Vec<Blob>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Files,
    Archive,
}

fn publish(draft: &Draft) -> Result<(), DataError> {
    let all = draft.path.parent().expect("a data set lies in a folder");
    let new = all.join(format!(".new-{}", draft.identity.hex()));
    // Left by a process that was killed: the set's lock is held, so it is nobody's.
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(DataError::io("remove", &new)(error)),
        _ => fs::create_dir_all(&new).map_err(DataError::io("create", &new))?,
    }
    match draft.kind {
        Kind::Files => {
            for (file, blob) in draft.files.iter().zip(&draft.blobs) {
                link(&blob.path, &new.join(&file.name))?;
            }
        }
        Kind::Archive => {
            for (file, blob) in draft.files.iter().zip(&draft.blobs) {
                unpack::unpack(&blob.path, &new).map_err(|source| DataError::Archive {
                    name: file.name.clone(),
                    source,
                })?;
            }
        }
    }
    describe(draft, all)?;
    sync_folder(&new)?;
    fs::rename(&new, &draft.path).map_err(DataError::io("create", &draft.path))?;
    sync_folder(all)
}

/// A hard link costs nothing; a copy where the file system has none, or too many to this file.
fn link(blob: &Path, name: &Path) -> Result<(), DataError> {
    match fs::hard_link(blob, name) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::StorageFull) => {
            Err(DataError::io("create", name)(error))
        }
        Err(_) => {
            fs::copy(blob, name).map_err(DataError::io("create", name))?;
            File::open(name)
                .and_then(|file| file.sync_all())
                .map_err(DataError::io("write", name))
        }
    }
}

/// What the set consists of, beside its folder, so that nothing but the set is in it.
fn describe(draft: &Draft, all: &Path) -> Result<(), DataError> {
    let files: Vec<_> = draft
        .files
        .iter()
        .zip(&draft.blobs)
        .map(|(file, blob)| {
            let declared = file.digest.is_some();
            json!({"name": file.name, "url": shown(&file.url), "digest": blob.digest, "declared": declared})
        })
        .collect();
    let text = format!("{:#}\n", json!({"version": 1, "identity": draft.identity, "files": files}));
    let mut path = draft.path.clone().into_os_string();
    path.push(".json");
    let path = PathBuf::from(path);
    let mut file = tempfile::NamedTempFile::new_in(all).map_err(DataError::io("create a file in", all))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(DataError::io("write", &path))?;
    file.persist(&path).map_err(|error| DataError::io("create", &path)(error.error))?;
    Ok(())
}

fn sync_folder(path: &Path) -> Result<(), DataError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(DataError::io("sync", path))
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}
