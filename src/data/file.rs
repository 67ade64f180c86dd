//! One file of a data set, from its URL to a blob of the store.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use tokio::task;

use super::DataError;
use super::location::{Location, locate, shown};
use crate::net::{Client, Download, Event, NetError, Progress, Request};
use crate::oci::{Algorithm, Digest, Hasher};
use crate::store::Store;
use crate::workflow::DataFile;

/// A file in the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Blob {
    pub path: PathBuf,
    pub digest: Digest,
}

/// The file's blob, fetched if it is not there. Without a declared checksum there is no telling, so it is fetched.
pub(super) async fn blob(client: &Client, store: &Store, file: &DataFile, progress: Progress<'_>) -> Result<Blob, DataError> {
    let location = locate(&file.url, client)?;
    let what = file.name.as_str();
    let present = || {
        let digest = file.digest.as_ref()?;
        let path = store.find_blob(digest)?;
        progress(Event::Present { what });
        let digest = digest.clone();
        Some(Blob { path, digest })
    };
    if let Some(blob) = present() {
        return Ok(blob);
    }
    let (key, partial) = match &file.digest {
        Some(digest) => (format!("blob-{}", digest.hex()), store.partial_blob(digest)),
        None => {
            let key = format!("url-{}", Digest::sha256(file.url.as_bytes()).hex());
            let partial = store.partial().join(&key);
            (key, partial)
        }
    };
    let _guard = store.lock_async(&key, || progress(Event::Waiting { what })).await?;
    if let Some(blob) = present() {
        return Ok(blob);
    }
    let digest = match location {
        Location::Http(url) => {
            let download = Download {
                request: Request::get(url),
                what,
                digest: file.digest.as_ref(),
                size: None,
                partial: &partial,
            };
            let downloaded = client.download(&download, progress).await.map_err(|error| net_error(file, error))?;
            downloaded.digest
        }
        Location::File(path) => {
            let algorithm = file.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            let to = partial.clone();
            let copied = task::spawn_blocking(move || copy(&path, &to, algorithm)).await;
            let actual = copied.expect("the thread neither panics nor is cancelled")?;
            if let Some(expected) = file.digest.as_ref().filter(|expected| **expected != actual) {
                fs::remove_file(&partial).map_err(DataError::io("remove", &partial))?;
                return Err(checksum(file, expected.clone(), actual));
            }
            actual
        }
    };
    let path = store.adopt_blob(&digest, &partial)?;
    Ok(Blob { path, digest })
}

fn net_error(file: &DataFile, source: NetError) -> DataError {
    match source {
        NetError::Digest { expected, actual, .. } => checksum(file, expected, actual),
        source => DataError::Net {
            name: file.name.clone(),
            source,
        },
    }
}

fn checksum(file: &DataFile, expected: Digest, actual: Digest) -> DataError {
    DataError::Checksum {
        name: file.name.clone(),
        url: shown(&file.url),
        expected,
        actual,
    }
}

/// Copies, so that the store's file stays what it is whatever becomes of the original; synced.
fn copy(from: &Path, to: &Path, algorithm: Algorithm) -> Result<Digest, DataError> {
    if !from.is_file() {
        return Err(DataError::Missing { path: from.to_owned() });
    }
    let mut source = File::open(from).map_err(DataError::io("open", from))?;
    let folder = to.parent().expect("a partial file lies in a folder");
    fs::create_dir_all(folder).map_err(DataError::io("create", folder))?;
    let mut target = File::create(to).map_err(DataError::io("create", to))?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = source.read(&mut buffer).map_err(DataError::io("read", from))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        target.write_all(&buffer[..read]).map_err(DataError::io("write", to))?;
    }
    target.sync_all().map_err(DataError::io("write", to))?;
    Ok(hasher.finish())
}
