//! Images as a user names them on the command line.

use std::path::{Path, PathBuf};

use super::args::{Global, block_on};
use super::credentials;
use super::failure::{Failure, exit};
use super::progress::Downloads;
use super::settings::Settings;
use crate::fetch::{self, FileFacts, PullError};
use crate::image::Limits;
use crate::net::{Client, Event};
use crate::oci::{Execution, Platform, Source};
use crate::registry::{Session, TagPolicy};
use crate::runtime::Root;
use crate::store::{Hold, StoredImage, StoredRoot};

/// A source with relative paths made absolute. What is there as a file, or as a folder whose name has a slash in it, is that.
pub fn source(text: &str) -> Result<Source, Failure> {
    let here = std::env::current_dir().map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    let path = Path::new(text);
    if (text.contains('/') && path.is_dir()) || path.is_file() {
        let path = std::path::absolute(path).map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
        return Ok(Source::Path(path));
    }
    let source: Source = text.parse().map_err(|error: crate::oci::SourceError| {
        let hint = error.hint();
        Failure::new(exit::USAGE, &error, hint)
    })?;
    Ok(source.absolute(&here))
}

/// The platform named, or this host's.
pub fn platform(text: Option<&str>) -> Result<Platform, Failure> {
    match text {
        Some(text) => text
            .parse()
            .map_err(|error: crate::oci::PlatformError| Failure::new(exit::USAGE, &error, None)),
        None => Ok(Platform::host()),
    }
}

/// Whether servers may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Use,
    Offline,
}

impl From<bool> for Network {
    /// From the flag `--offline`.
    fn from(offline: bool) -> Network {
        if offline { Network::Offline } else { Network::Use }
    }
}

/// How far tags are trusted without asking.
pub fn tags(network: Network, settings: &Settings) -> TagPolicy {
    match network {
        Network::Use => TagPolicy::Cached(std::time::Duration::from_secs(settings.tag_ttl.0)),
        Network::Offline => TagPolicy::Offline,
    }
}

/// The image in the store, fetched and converted if it is not there.
pub fn ensure(
    source: &Source,
    platform: &Platform,
    network: Network,
    global: &Global,
    settings: &Settings,
) -> Result<StoredImage, Failure> {
    with_session(tags(network, settings), global, settings, async |session| {
        let found = fetch::find(session, source, platform).await?;
        Ok(fetch::image(session, &found, Limits::default()).await?)
    })
}

/// Runs `work` with what it needs to ask registries: client, store, the user's credentials, progress on the terminal.
pub fn with_session<T>(
    tags: TagPolicy,
    global: &Global,
    settings: &Settings,
    work: impl AsyncFnOnce(&Session<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let downloads = Downloads::new(global.quiet);
    let show = |event: Event<'_>| downloads.show(event);
    let client = Client::new(settings.net.clone())?;
    let credentials = credentials::known(settings.home.as_deref());
    let session = Session::new(&client, &settings.store, &credentials, tags, &show);
    block_on(work(&session))
}

/// A root to run in, and how its image wants to be run.
pub struct Rootfs {
    pub root: Root,
    pub execution: Execution,
    /// Of one in the store, as long as it runs.
    _hold: Option<Hold>,
}

/// The root file system that `text` means. A file or folder on disk is used as it is, unnoticed by the store.
pub fn rootfs(text: &str, network: Network, global: &Global, settings: &Settings) -> Result<Rootfs, Failure> {
    let source = source(text)?;
    if let Source::Path(path) = &source {
        let path = std::fs::canonicalize(path).map_err(|error| Failure::message(exit::USAGE, format!("cannot read {text}: {error}")))?;
        if path.is_dir() {
            return Ok(Rootfs {
                root: Root::Folder(path),
                execution: Execution::default(),
                _hold: None,
            });
        }
        let facts = file_facts(&path)?;
        return Ok(Rootfs {
            root: file_root(path, facts.offset, settings),
            execution: facts.config.config,
            _hold: None,
        });
    }
    let stored = match is_digest(text).then(|| super::image::find(&settings.store, text)) {
        Some(Ok(known)) => known,
        // What looks like a digest may be a name.
        _ => ensure(&source, &Platform::host(), network, global, settings)?,
    };
    let hold = stored.hold()?;
    let root = match stored.root() {
        StoredRoot::Folder(path) => Root::Folder(path),
        StoredRoot::Squashfs { file, offset } => file_root(file, offset, settings),
    };
    Ok(Rootfs {
        root,
        execution: stored.info.config.config,
        _hold: hold,
    })
}

/// As `image ls` shows digests, or more of it.
fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    hex.len() >= 12 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn file_root(file: PathBuf, offset: u64, settings: &Settings) -> Root {
    Root::Squashfs {
        file,
        offset,
        access: settings.image_access,
        scratch: settings.scratch.clone(),
    }
}

/// What an image that is one file says of itself.
pub fn file_facts(path: &Path) -> Result<FileFacts, Failure> {
    fetch::file_facts(path).map_err(|source| {
        let image = path.display().to_string();
        let hint = source.hint();
        Failure::new(exit::USAGE, &PullError::File { image, source }, hint)
    })
}
