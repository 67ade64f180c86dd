//! What can go wrong between here and a server. No message has a query string or a credential in it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use super::client::{is_certificate, says};
use crate::oci::Digest;

/// How rustls and hyper say that the other side ended a connection.
const CLOSED: [&str; 3] = ["received fatal alert", "connection closed", "channel closed"];

/// A failed request or download.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot get {url}")]
    Transport { url: String, source: reqwest::Error },
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error("{url} redirects more than {limit} times")]
    Redirects { url: String, limit: usize },
    #[error("{url} redirects to {to}, which is not encrypted, and there is no checksum to verify what comes from there")]
    Downgrade { url: String, to: String },
    #[error("{url} redirects to something that is no http or https URL")]
    Redirect { url: String },
    #[error("{url} is longer than the {limit} bytes that it should have")]
    TooLong { url: String, limit: u64 },
    #[error("{url} ended after {got} of {expected} bytes, {attempts} times")]
    Truncated {
        url: String,
        got: u64,
        expected: u64,
        attempts: u32,
    },
    #[error("{url} took nothing and said nothing for {seconds} s")]
    Stalled { url: String, seconds: u64 },
    #[error("{url} answered with another part than was asked for")]
    Range { url: String },
    #[error("{url} is not what it should be: its checksum is {actual}, expected {expected}")]
    Digest { url: String, expected: Digest, actual: Digest },
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is no usable certificate", path.display())]
    Certificate { path: PathBuf, source: reqwest::Error },
    #[error("{} has no key: {} is not there", certificate.display(), key.display())]
    NoKey { certificate: PathBuf, key: PathBuf },
    #[error("the proxy `{0}` is not a URL that can be used")]
    Proxy(String),
    #[error("cannot set up HTTP")]
    Setup(#[source] reqwest::Error),
    #[error("`{text}` in the network's settings is not a URL")]
    Setting { text: String },
}

/// A status that is no success, with what the server said of it.
#[derive(Clone)]
pub struct Refusal {
    /// Redacted.
    pub url: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The first 64 KiB.
    pub body: Bytes,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered {}", self.url, self.status)
    }
}

impl fmt::Debug for Refusal {
    /// Without headers and body, in which a server may repeat what it was sent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal")
            .field("url", &self.url)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl NetError {
    /// Whether another try may bring what this one did not.
    pub fn is_passing(&self) -> bool {
        match self {
            NetError::Transport { source, .. } => !source.is_builder() && !is_certificate(source),
            NetError::Truncated { .. } | NetError::Range { .. } | NetError::Stalled { .. } => true,
            _ => false,
        }
    }

    /// What the server refused with, if that is what happened.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            NetError::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            // What a server does that asked for a certificate and got none; its alert may be lost with the connection.
            NetError::Transport { url, source } if url.starts_with("https:") && CLOSED.iter().any(|word| says(source, word)) => {
                "if the server wants to see a certificate of yours, give `client_certificate` and `client_key` under `registries` in the \
                 configuration, or put client.cert and client.key into ~/.config/containers/certs.d/HOST"
            }
            NetError::Transport { source, .. } if is_certificate(source) => {
                "if the server's certificate is signed by an authority of your site, give that as `ca_certificates` under `registries` in \
                 the configuration, or put it into ~/.config/containers/certs.d/HOST as ca.crt"
            }
            NetError::NoKey { .. } => "a client certificate NAME.cert needs NAME.key beside it; an authority's file ends in .crt",
            NetError::Transport { source, .. } if source.is_connect() => {
                "check the network, and the proxy and certificate settings in the configuration"
            }
            NetError::Refused(refusal) => match refusal.status.as_u16() {
                401 | 403 => "this needs credentials, or a mirror that has it (`mirrors` in the configuration)",
                404 | 410 => "check the URL",
                429 => "the server's quota is used up: wait, or set a mirror in the configuration",
                500..=599 => "the server has a problem: try again later, what was fetched is kept",
                _ => return None,
            },
            NetError::Downgrade { .. } => "give its checksum (sha256), or another URL",
            NetError::Truncated { .. } => "try again later: what was fetched is kept",
            NetError::Digest { .. } => "if the file was renewed on purpose, put its new checksum where the old one was written",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
