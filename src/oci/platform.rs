//! Platforms: `os/architecture[/variant]` (OCI image index, `platform`), and which of an index's images runs on one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system, a processor in Go's names, and its level.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a platform (expected os/architecture or os/architecture/variant, such as linux/arm64/v8)")]
pub struct PlatformError(String);

impl Platform {
    /// This host's. The level of an amd64 is left at its baseline, which runs everywhere.
    pub fn host() -> Platform {
        let (architecture, variant) = known(std::env::consts::ARCH, None);
        Platform {
            os: "linux".to_owned(),
            architecture,
            variant,
        }
    }

    /// How well an image made for `image` suits this platform: `None` not at all, else more is better.
    pub fn suits(&self, image: &Platform) -> Option<u32> {
        let (architecture, variant) = known(&image.architecture, image.variant.as_deref());
        let (my_architecture, my_variant) = known(&self.architecture, self.variant.as_deref());
        if !self.os.eq_ignore_ascii_case(&image.os) || architecture != my_architecture {
            return None;
        }
        if variant == my_variant {
            return Some(u32::MAX);
        }
        let mine = level(&architecture, my_variant.as_deref())?;
        let theirs = level(&architecture, variant.as_deref())?;
        (theirs <= mine).then_some(theirs)
    }
}

/// One name for each processor: Go's, with the variants that mean the default left out.
fn known(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant.filter(|v| !v.is_empty()).map(str::to_ascii_lowercase);
    let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
        ("aarch64" | "arm64", other) => ("arm64", other),
        ("armhf", _) => ("arm", Some("v7")),
        ("armel", _) => ("arm", Some("v6")),
        ("arm", None | Some("7" | "v7")) => ("arm", Some("v7")),
        ("arm", Some("6")) => ("arm", Some("v6")),
        ("arm", Some("5")) => ("arm", Some("v5")),
        ("i386" | "i686" | "x86" | "386", _) => ("386", None),
        ("powerpc64le" | "ppc64el" | "ppc64le", other) => ("ppc64le", other),
        (other, variant) => return (other.to_owned(), variant.map(str::to_owned)),
    };
    (architecture.to_owned(), variant.map(str::to_owned))
}

/// Levels are compatible downwards: v3 runs what was made for v2.
fn level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    match (architecture, variant) {
        ("amd64", None) => Some(1),
        ("arm64", None) => Some(80),
        // v8.2 and v9.1 are levels between the whole ones.
        ("arm64", Some(variant)) => {
            let (major, minor) = variant
                .strip_prefix('v')?
                .split_once('.')
                .unwrap_or((variant.strip_prefix('v')?, "0"));
            Some(major.parse::<u8>().ok()? as u32 * 10 + minor.parse::<u8>().ok()?.min(9) as u32)
        }
        (_, Some(variant)) => variant.strip_prefix('v')?.parse::<u8>().ok().map(u32::from),
        (_, None) => None,
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || PlatformError(text.chars().take(80).collect());
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(word) {
            return Err(wrong());
        }
        let (architecture, variant) = known(parts[1], parts.get(2).copied());
        Ok(Platform {
            os: parts[0].to_ascii_lowercase(),
            architecture,
            variant,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn many_names_one_platform() {
        for (text, name) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/aarch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ] {
            assert_eq!(platform(text).to_string(), name);
        }
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_runs_where() {
        let suits = |host: &str, image: &str| platform(host).suits(&platform(image));
        assert!(suits("linux/amd64", "linux/amd64").is_some());
        assert!(suits("linux/amd64", "linux/amd64/v2").is_none(), "the baseline cannot run v2");
        assert!(suits("linux/amd64/v3", "linux/amd64/v4").is_none());
        assert!(suits("linux/amd64/v3", "linux/amd64/v2") > suits("linux/amd64/v3", "linux/amd64"));
        assert!(suits("linux/arm64", "linux/arm64/v8").is_some());
        assert!(suits("linux/arm64/v8", "linux/arm64/v9").is_none());
        assert!(suits("linux/arm64/v9", "linux/arm64").is_some());
        assert!(suits("linux/arm/v7", "linux/arm/v6") < suits("linux/arm/v7", "linux/arm/v7"));
        assert!(suits("linux/arm/v6", "linux/arm/v7").is_none());
        assert!(suits("linux/amd64", "windows/amd64").is_none());
        assert!(suits("linux/amd64", "linux/386").is_none());
    }
}
