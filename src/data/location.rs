//! URLs of data: `https:`, `http:`, `gs:` and `file:`, after the mirror rules.

use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;

use super::DataError;
use crate::net::Client;

const STORAGE: &str = "https://storage.googleapis.com/";

/// All but RFC 3986's unreserved characters and the slash: `+` in a key is a plus, and `#` and `?` end nothing.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Where a file is to be had.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Location {
    Http(Url),
    File(PathBuf),
}

/// A mirror rule may be written for `gs://…` or for the URL that it stands for.
pub(super) fn locate(url: &str, client: &Client) -> Result<Location, DataError> {
    let mirrored = client.mirrored(url);
    let plain = match mirrored.strip_prefix("gs://") {
        Some(object) => client.mirrored(&object_url(url, object)?),
        None => mirrored,
    };
    let wrong = || DataError::Url { url: shown(url) };
    let parsed = Url::parse(&plain).map_err(|_| wrong())?;
    match parsed.scheme() {
        "http" | "https" => Ok(Location::Http(parsed)),
        "file" => parsed.to_file_path().map(Location::File).map_err(|()| wrong()),
        _ => Err(wrong()),
    }
}

fn object_url(url: &str, object: &str) -> Result<String, DataError> {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    match object.split_once('/') {
        Some((bucket, key)) if !bucket.is_empty() && bucket.bytes().all(word) && !key.is_empty() => {
            Ok(format!("{STORAGE}{bucket}/{}", utf8_percent_encode(key, KEY)))
        }
        _ => Err(DataError::Url { url: shown(url) }),
    }
}

/// A URL for people: what may be a secret is left out.
pub(super) fn shown(url: &str) -> String {
    match Url::parse(url) {
        Ok(parsed) if parsed.has_host() => crate::net::redact(&parsed),
        _ => url.split(['?', '#']).next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Options;

    fn client(mirrors: &str) -> Client {
        let options = Options {
            mirrors: serde_json::from_str(mirrors).unwrap(),
            ..Options::default()
        };
        Client::new(options).unwrap()
    }

    fn http(url: &str, client: &Client) -> String {
        match locate(url, client).unwrap() {
            Location::Http(url) => url.to_string(),
            Location::File(path) => panic!("{}", path.display()),
        }
    }

    #[test]
    fn objects_are_https() {
        let plain = client("{}");
        assert_eq!(
            http("gs://deepvariant/a/b.bam", &plain),
            "https://storage.googleapis.com/deepvariant/a/b.bam"
        );
        assert_eq!(
            http("gs://b/model-0.5.0+data-wgs/x y?#%.gz", &plain),
            "https://storage.googleapis.com/b/model-0.5.0%2Bdata-wgs/x%20y%3F%23%25.gz"
        );
        for bad in [
            "gs://",
            "gs://b",
            "gs://b/",
            "gs:///k",
            "gs://b@h/k",
            "ftp://h/x",
            "x",
            "file://host/x",
        ] {
            assert!(matches!(locate(bad, &plain), Err(DataError::Url { .. })), "{bad}");
        }
        assert_eq!(locate("file:///a%20b/c", &plain).unwrap(), Location::File("/a b/c".into()));
    }

    #[test]
    fn mirrors_stand_in_for_either_spelling() {
        let rules = r#"{"https://storage.googleapis.com/d/": "http://127.0.0.1:1/m/", "gs://e/": "file:///data/", "http://h/": "gs://d/"}"#;
        let mirrored = client(rules);
        assert_eq!(http("gs://d/k+1", &mirrored), "http://127.0.0.1:1/m/k%2B1");
        assert_eq!(locate("gs://e/k", &mirrored).unwrap(), Location::File("/data/k".into()));
        assert_eq!(http("http://h/k", &mirrored), "http://127.0.0.1:1/m/k");
        assert_eq!(http("http://i/k", &mirrored), "http://i/k");
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("https://u:p@h/x?sig=1"), "https://h/x");
        assert_eq!(shown("nonsense?sig=1"), "nonsense");
    }
}
