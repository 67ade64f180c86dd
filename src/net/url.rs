//! URLs: what may be shown of them, and which are this machine's own.

use std::net::IpAddr;

use reqwest::Url;

/// Without user, password, query and fragment: signed URLs carry their secret in the query.
pub fn redact(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// Whether a host, with a port or without, is this machine: such a registry may speak plain HTTP.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether what may be sent to one may be sent to the other: scheme, host and port are the same.
pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let url = Url::parse("https://user:secret@h.example:8443/a/b?X-Signature=secret#secret").unwrap();
        assert_eq!(redact(&url), "https://h.example:8443/a/b");
        let url = Url::parse("https://[::1]/x").unwrap();
        assert_eq!(redact(&url), "https://[::1]/x");
    }

    #[test]
    fn this_machine() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:5000", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "10.0.0.1:5000", "[::2]:1", "gcr.io", "", "127.0.0.1.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
