//! What the operations on sources share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task;

use super::archive::Archive;
use super::auth::Tokens;
use super::{Credentials, RegistryError};
use crate::net::{Client, Progress};
use crate::store::Store;

/// How far a tag's earlier meaning is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagPolicy {
    /// The registry is asked.
    Ask,
    /// The registry is asked when its last answer is older than this.
    Cached(Duration),
    /// Nobody is asked anything: what is not in the store cannot be had.
    Offline,
}

/// One caller's business with registries; tokens live as long as it does.
pub struct Session<'a> {
    pub client: &'a Client,
    pub store: &'a Store,
    pub credentials: &'a Credentials,
    pub tags: TagPolicy,
    pub progress: Progress<'a>,
    pub(super) tokens: Tokens,
    /// Archives whose headers were read.
    archives: tokio::sync::Mutex<HashMap<PathBuf, Arc<Archive>>>,
    /// Of registries on this machine, once found out.
    pub(super) schemes: tokio::sync::Mutex<HashMap<String, &'static str>>,
}

impl<'a> Session<'a> {
    pub fn new(client: &'a Client, store: &'a Store, credentials: &'a Credentials, tags: TagPolicy, progress: Progress<'a>) -> Session<'a> {
        Session {
            client,
            store,
            credentials,
            tags,
            progress,
            tokens: Tokens::default(),
            archives: tokio::sync::Mutex::default(),
            schemes: tokio::sync::Mutex::default(),
        }
    }

    /// An archive on disk, its headers read once a session.
    pub(super) async fn archive(&self, path: &Path) -> Result<Arc<Archive>, RegistryError> {
        let mut archives = self.archives.lock().await;
        if let Some(archive) = archives.get(path) {
            return Ok(Arc::clone(archive));
        }
        let file = path.to_owned();
        let opened = task::spawn_blocking(move || Archive::open(&file)).await;
        let archive = Arc::new(opened.expect("the thread neither panics nor is cancelled")?);
        archives.insert(path.to_owned(), Arc::clone(&archive));
        Ok(archive)
    }
}
