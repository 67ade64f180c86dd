//! Whether a registry takes someone's credentials, before they are kept.

use std::fmt;
use std::str::FromStr;

use super::auth::Subject;
use super::{RegistryError, Session};
use crate::net::Request;
use crate::oci::Reference;

/// How much of the answer to `GET /v2/` is read, in bytes.
const PING_MAX: u64 = 1 << 20;
/// The names under which people know Docker Hub.
const HUB_NAMES: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// A registry by its host, with a port or without; Docker Hub is `docker.io` whatever it was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// Any repository of it: where it answers follows from a reference.
    any: Reference,
}

impl Registry {
    /// The host as references name it.
    pub fn host(&self) -> &str {
        self.any.host()
    }
}

impl FromStr for Registry {
    type Err = RegistryError;

    /// `ghcr.io`, `127.0.0.1:5000`, or a URL of the registry (`https://index.docker.io/v1/`).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || RegistryError::NoRegistry {
            text: text.chars().take(300).collect(),
        };
        let schemes = ["https://", "http://", "docker://", "oras://"];
        let rest = schemes.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
        let host = rest.split('/').next().unwrap_or_default();
        let host = if HUB_NAMES.contains(&host) { "docker.io" } else { host };
        let any: Reference = format!("{host}/any").parse().map_err(|_| wrong())?;
        // Without a dot or a port it was taken for a part of a Docker Hub repository's name.
        if any.host() == host { Ok(Registry { any }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.host())
    }
}

/// What a registry makes of credentials that it does not refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    Accepted,
    /// It lets everybody in: nothing tells whether they are right.
    NotAsked,
}

/// Logs in with the session's credentials, and out again: nothing is asked but who one is (OCI distribution spec,
/// `GET /v2/`). Mirrors are passed over.
///
/// # Errors
/// The registry's refusal, or what kept it from answering.
pub async fn check_login(session: &Session<'_>, registry: &Registry) -> Result<Checked, RegistryError> {
    let endpoint = session.origin(&registry.any).await?;
    let ping = Request::get(endpoint.ping()?);
    let anonymous = session.client.read(&ping, PING_MAX, session.progress).await;
    let what = || "the login".to_owned();
    let anonymous = anonymous.map_err(|error| RegistryError::net(what(), registry.host(), registry.host(), error))?;
    if anonymous.status.is_success() {
        return Ok(Checked::NotAsked);
    }
    let subject = Subject::Registry(registry.host());
    session.authorized(&endpoint, subject, &ping, PING_MAX, what).await?;
    Ok(Checked::Accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_by_any_of_their_names() {
        for (text, host) in [
            ("ghcr.io", "ghcr.io"),
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("http://localhost:5000/", "localhost:5000"),
            ("docker://quay.io/lab", "quay.io"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(text.parse::<Registry>().unwrap().host(), host, "{text}");
        }
        for text in ["", "lab", "https://", "a b.example", "user@h.example", "ftp://h.example"] {
            let error = text.parse::<Registry>().unwrap_err();
            assert!(error.hint().is_some_and(|hint| hint.contains("host")), "{text}");
        }
    }
}
