//! Image references: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, in Docker's grammar
//! (`distribution/reference`): a first part with a dot, a colon or capitals, or `localhost`, is a host; without one
//! the image is Docker Hub's, and a path of one part lies under `library/` there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Digest;

/// The name that Docker Hub's images bear.
const HUB: &str = "docker.io";
/// The longest repository path that registries take.
const PATH_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A repository, and a tag or a digest or both in it. With both, the digest decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not an image reference: {why}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Reference {
    /// The registry as the reference names it: `docker.io`, `gcr.io`, `127.0.0.1:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where that registry's API answers: Docker Hub's is on another host than its name.
    pub fn api_host(&self) -> &str {
        if self.host == HUB { "registry-1.docker.io" } else { &self.host }
    }

    /// The repository's path in the registry: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag as written; [`Reference::to_ask`] knows the default.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the manifest is asked by: the digest, else the tag, else `latest`.
    pub fn to_ask(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository and tag, at this digest.
    pub fn at(&self, digest: &Digest) -> Reference {
        Reference {
            digest: Some(digest.clone()),
            ..self.clone()
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|why| ReferenceError {
            text: text.chars().take(300).collect(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest
                .parse::<Digest>()
                .map_err(|_| "after `@` stands sha256: and 64, or sha512: and 128 lower-case hexadecimal digits")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    if rest.is_empty() {
        return Err("it has no name");
    }
    let (host, path) = match rest.split_once('/') {
        Some((first, path)) if is_host(first) => (Some(first), path),
        _ => (None, rest),
    };
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    if let Some(tag) = tag
        && !valid_tag(tag)
    {
        return Err("a tag is at most 128 letters, digits, `_`, `.` and `-`, and begins with none of the last two");
    }
    if let Some(host) = host
        && !valid_host(host)
    {
        return Err("its host is not a name or address with an optional port");
    }
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("the repository's name must be in lower case");
    }
    if !path.split('/').all(valid_part) {
        return Err("a repository is lower-case letters and digits, with `.`, `_`, `__` or `-` between them, in parts joined by `/`");
    }
    if path.len() > PATH_MAX {
        return Err("the repository's name is longer than 255 characters");
    }
    if host.is_none() && path.len() == 64 && path.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are an image's id, which no registry can be asked for");
    }
    let host = match host {
        None | Some("index.docker.io" | "registry-1.docker.io") => HUB,
        Some(host) => host,
    };
    let repository = if host == HUB && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    Ok(Reference {
        host: host.to_owned(),
        repository,
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// Whether the part before the first `/` is a host rather than a part of a path.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.chars().any(|c| c.is_ascii_uppercase())
}

fn valid_host(host: &str) -> bool {
    let (valid_name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((address, port))) => (address.parse::<std::net::Ipv6Addr>().is_ok(), port),
        Some(None) => return false,
        None => {
            let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
            (name.split('.').all(valid_label), port)
        }
    };
    let valid_port = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    valid_name && valid_port && host.len() <= 255
}

fn valid_label(label: &str) -> bool {
    let bytes = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    !label.is_empty() && bytes && !label.starts_with('-') && !label.ends_with('-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn valid_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(first)
        && alphanumeric(last)
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=TAG_MAX).contains(&tag.len()) && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

impl fmt::Display for Reference {
    /// Whole: with host, `library/`, and `:latest` where neither tag nor digest was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        match (&self.tag, &self.digest) {
            (None, None) => f.write_str(":latest"),
            (tag, digest) => {
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
                if let Some(digest) = digest {
                    write!(f, "@{digest}")?;
                }
                Ok(())
            }
        }
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_as_docker_does() {
        let long = format!("a.b/c@{SHA}");
        let both = format!("gcr.io/p/i:1.0@{SHA}");
        for (text, whole, host, repository, ask) in [
            (
                "debian",
                "docker.io/library/debian:latest",
                "registry-1.docker.io",
                "library/debian",
                "latest",
            ),
            (
                "debian:12",
                "docker.io/library/debian:12",
                "registry-1.docker.io",
                "library/debian",
                "12",
            ),
            (
                "docker.io/debian",
                "docker.io/library/debian:latest",
                "registry-1.docker.io",
                "library/debian",
                "latest",
            ),
            (
                "index.docker.io/a/b",
                "docker.io/a/b:latest",
                "registry-1.docker.io",
                "a/b",
                "latest",
            ),
            (
                "biocontainers/samtools:v1",
                "docker.io/biocontainers/samtools:v1",
                "registry-1.docker.io",
                "biocontainers/samtools",
                "v1",
            ),
            ("localhost/x", "localhost/x:latest", "localhost", "x", "latest"),
            ("127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000", "a/b/c", "t"),
            ("[::1]:5000/x:y", "[::1]:5000/x:y", "[::1]:5000", "x", "y"),
            ("[2001:db8::1]/x", "[2001:db8::1]/x:latest", "[2001:db8::1]", "x", "latest"),
            ("HOST/x", "HOST/x:latest", "HOST", "x", "latest"),
            (&long, &long, "a.b", "c", SHA),
            (&both, &both, "gcr.io", "p/i", SHA),
            (
                "q.io/a--b/c__d.e_f:A.b-c",
                "q.io/a--b/c__d.e_f:A.b-c",
                "q.io",
                "a--b/c__d.e_f",
                "A.b-c",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(reference.api_host(), host, "{text}");
            assert_eq!(reference.repository(), repository, "{text}");
            assert_eq!(reference.to_ask(), ask, "{text}");
            assert_eq!(whole.parse::<Reference>().unwrap().to_string(), whole, "{text} again");
        }
    }

    #[test]
    fn nothing_else_is_a_reference() {
        let long = "a/".repeat(128) + "a";
        let id = "0".repeat(64);
        let tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            ":tag",
            "@sha256:00",
            "Debian",
            "a//b",
            "/a",
            "a/",
            "a/../b",
            "a:",
            "a:-x",
            "a:b c",
            "a:b/c",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a._b",
            "h.x:99999/a",
            "h.x:/a",
            "h:p/a",
            "[::1/a",
            "[x]:1/a",
            "[::1]x/a",
            ".h/a",
            "h..x/a",
            "a@md5:00",
            "a b",
            "a\n",
            "é/a",
            "http://h/a",
            "a@sha256:../../../../etc/passwd",
            &long,
            &id,
            &tag,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
