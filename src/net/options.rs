//! The settings of the network, as a configuration file has them.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// Everything that is set about the network. Durations are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// URL prefix → what stands in its place. The longest prefix that fits counts; the origin is not asked.
    pub mirrors: IndexMap<String, String>,
    /// By host, as references name it (`docker.io`, `gcr.io`, `127.0.0.1:5000`).
    pub registries: IndexMap<String, RegistryOptions>,
    /// PEM files of authorities to trust beside the system's.
    pub ca_certificates: Vec<PathBuf>,
    /// A PEM file with this user's certificate and its key.
    pub client_certificate: Option<PathBuf>,
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
    pub mirrors: Vec<String>,
    /// Speaks plain HTTP.
    pub http: bool,
}

/// Proxies by scheme of the URL that is asked, and the hosts that are asked directly (`NO_PROXY`'s syntax).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    pub http: Option<String>,
    pub https: Option<String>,
    pub none_for: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mirrors: IndexMap::new(),
            registries: IndexMap::new(),
            ca_certificates: Vec::new(),
            client_certificate: None,
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
