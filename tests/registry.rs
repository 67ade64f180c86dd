//! Images from a real registry, from servers that misbehave, and from layouts on disk.

mod artifacts;
mod conversations;
mod faults;
mod killed;
mod login;
mod manifests;
mod manners;
mod progress;
mod push;
mod real;
mod refusals;
mod secrets;
mod secured;
mod tokens;
mod transport;
mod uploads;

use std::path::Path;
use std::time::Duration;

use dvrun::net::{Client, Options, silent};
use dvrun::oci::{Platform, Source};
use dvrun::registry::{Credentials, Pulled, RegistryError, Resolved, Session, TagPolicy, pull, resolve};
use dvrun::store::Store;

/// Quick to give up, quick to try again.
fn options() -> Options {
    Options {
        attempts: 3,
        backoff_ms: 1,
        read_timeout: 1,
        connect_timeout: 5,
        ..Options::default()
    }
}

fn client() -> Client {
    Client::new(options()).expect("no certificate is named")
}

fn amd64() -> Platform {
    "linux/amd64".parse().expect("a platform")
}

fn source(text: &str) -> Source {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// Resolves and pulls anonymously, tags as they are now.
async fn fetch(client: &Client, cache: &Path, text: &str) -> Result<(Resolved, Pulled), RegistryError> {
    fetch_with(client, cache, text, &Credentials::none(), TagPolicy::Ask).await
}

async fn fetch_with(
    client: &Client,
    cache: &Path,
    text: &str,
    credentials: &Credentials,
    tags: TagPolicy,
) -> Result<(Resolved, Pulled), RegistryError> {
    let store = Store::new(cache);
    let session = Session::new(client, &store, credentials, tags, &silent);
    let resolved = resolve(&session, &source(text), &amd64()).await?;
    let pulled = pull(&session, &resolved, &|_, path| {
        assert!(path.is_file(), "a layer is there when it is said to be")
    })
    .await?;
    Ok((resolved, pulled))
}

const HOUR: TagPolicy = TagPolicy::Cached(Duration::from_secs(3600));
