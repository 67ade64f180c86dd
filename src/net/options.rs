//! The settings of the network, as a configuration file has them.

use std::path::PathBuf;

use indexmap::IndexMap;
use reqwest::Url;
use serde::{Deserialize, Deserializer, Serialize};

use super::redact;

/// Everything that is set about the network. Durations are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// URL prefix → what stands in its place. The longest prefix that fits counts; the origin is not asked.
    #[serde(skip)]
    pub mirrors: IndexMap<String, String>,
    /// By host, as references name it (`docker.io`, `gcr.io`, `127.0.0.1:5000`).
    #[serde(skip)]
    pub registries: IndexMap<String, RegistryOptions>,
    /// PEM files of authorities to trust beside the system's.
    pub ca_certificates: Vec<PathBuf>,
    /// A PEM file with this user's certificate and its key, for all hosts that ask for one.
    pub client_certificate: Option<PathBuf>,
    /// Folders with one for each host, `HOST[:PORT]/`, that has `*.crt`, `*.cert` and `*.key` (containers-certs.d(5)). The
    /// first that has one for a host counts.
    pub certificate_folders: Vec<PathBuf>,
    pub proxy: Proxy,
    /// To connect, in seconds.
    pub connect_timeout: u64,
    /// Without a byte, in seconds.
    pub read_timeout: u64,
    /// How often a request is tried in all.
    pub attempts: u32,
    /// The wait after the first failure in milliseconds; it doubles with each one, to a minute at most.
    pub backoff_ms: u64,
    /// How many seconds of `Retry-After` are waited for; a server that asks for more is given up.
    pub longest_wait: u64,
    /// A body of twice this many bytes or more is fetched in parts of this length, several at once, where the server
    /// allows it; 0: never.
    pub part_bytes: u64,
    /// Requests at once, over all hosts.
    pub connections: usize,
    pub user_agent: String,
}

/// What is set about one registry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryOptions {
    /// Base URLs (`http://10.0.0.1:5000`, `https://mirror.example/hub`), asked in turn before the registry itself.
    #[serde(deserialize_with = "base_urls")]
    pub mirrors: Vec<String>,
    /// Speaks plain HTTP.
    pub http: bool,
    /// PEM files of authorities to trust for this registry.
    pub ca_certificates: Vec<PathBuf>,
    /// A PEM file with the certificate to show to this registry, and its key where `client_key` is not set.
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

/// Proxies by scheme of the URL that is asked, and the hosts that are asked directly (`NO_PROXY`'s syntax).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    pub http: Option<String>,
    pub https: Option<String>,
    pub none_for: Option<String>,
}

/// A mirror: told from a mistake while the file is read, so that the place of the mistake can be said.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct BaseUrl(String);

impl TryFrom<String> for BaseUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let url = Url::parse(&text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let plain = |url: &Url| url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
        match url.filter(plain) {
            Some(_) => Ok(BaseUrl(text)),
            None => Err(format!(
                "`{}` is not the base URL of a mirror: write https://HOST or http://HOST:PORT/PATH",
                shown(&text)
            )),
        }
    }
}

/// What replaces the beginning of a URL: another beginning.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Replacement(String);

impl TryFrom<String> for Replacement {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match Url::parse(&text).is_ok_and(|url| matches!(url.scheme(), "http" | "https" | "gs" | "file")) {
            true => Ok(Replacement(text)),
            false => Err(format!(
                "`{}` is not a URL that can stand in another's place: write https://…, http://…, gs://… or file:///…",
                shown(&text)
            )),
        }
    }
}

/// Without what may be a secret.
fn shown(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) if url.has_host() => redact(&url),
        _ => text.split(['?', '#', '@']).next().unwrap_or_default().chars().take(100).collect(),
    }
}

fn base_urls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let urls = Vec::<BaseUrl>::deserialize(deserializer)?;
    Ok(urls.into_iter().map(|BaseUrl(text)| text).collect())
}

/// Reads what [`Options::mirrors`] is.
///
/// # Errors
/// A value that is no URL.
pub fn replacements<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IndexMap<String, String>, D::Error> {
    let rules = IndexMap::<String, Replacement>::deserialize(deserializer)?;
    Ok(rules.into_iter().map(|(prefix, Replacement(text))| (prefix, text)).collect())
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mirrors: IndexMap::new(),
            registries: IndexMap::new(),
            ca_certificates: Vec::new(),
            client_certificate: None,
            certificate_folders: Vec::new(),
            proxy: Proxy::default(),
            connect_timeout: 20,
            read_timeout: 60,
            attempts: 5,
            backoff_ms: 2000,
            longest_wait: 300,
            part_bytes: 16 << 20,
            connections: 8,
            user_agent: concat!("dvrun/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_manners_that_registries_expect() {
        let options = Options::default();
        // Two seconds, doubling, five tries.
        assert_eq!((options.backoff_ms, options.attempts), (2000, 5));
    }

    #[test]
    fn a_mirror_is_a_url() {
        let mirrors = |text: &str| serde_json::from_value::<RegistryOptions>(serde_json::json!({"mirrors": [text]}));
        for good in ["http://10.0.0.1:5000", "https://mirror.example/hub/", "http://[::1]:5000"] {
            assert_eq!(mirrors(good).unwrap().mirrors, [good]);
        }
        for bad in [
            "",
            "mirror.example",
            "mirror.example:5000",
            "ftp://h",
            "https://",
            "https://ada:secret@h",
            "https://h/?secret",
        ] {
            let error = mirrors(bad).unwrap_err().to_string();
            assert!(error.contains("base URL") && !error.contains("secret"), "{bad}: {error}");
        }
        let rules = |text: &str| replacements(serde_json::json!({"gs://b/": text}));
        assert!(rules("file:///data/").is_ok() && rules("http://127.0.0.1:1/").is_ok());
        assert!(rules("/data").is_err() && rules("mirror.example/").is_err());
    }
}
