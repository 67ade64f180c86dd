//! Where an image comes from, as a workflow or a command line writes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Reference, ReferenceError};

/// The image sources that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `docker://REFERENCE`, or the reference alone.
    Registry(Reference),
    /// `oci:DIR[:TAG]`: an OCI image layout on disk.
    Layout { dir: PathBuf, tag: Option<String> },
    /// `oci-archive:FILE[:TAG]` or `docker-archive:FILE[:NAME:TAG]`: a tar file with one or several images.
    Archive {
        kind: ArchiveKind,
        file: PathBuf,
        tag: Option<String>,
    },
    /// `oras://REFERENCE`: a SIF file kept in a registry.
    Artifact(Reference),
    /// A SIF or SquashFS file, or a root folder: a path with a slash, or a name that ends as such files do.
    Path(PathBuf),
}

/// How files that are images are called.
const ENDINGS: [&str; 4] = [".sif", ".sqfs", ".squashfs", ".sqsh"];

/// Who writes such archives. What is in one, its members say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveKind {
    Oci,
    /// `docker save`.
    Docker,
}

/// Why a text is no source.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourceError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("`{0}` names no folder or file")]
    NoFolder(String),
    #[error("`{text}`: images from `{scheme}` cannot be read")]
    Unsupported { text: String, scheme: String, hint: &'static str },
}

impl SourceError {
    pub fn hint(&self) -> Option<String> {
        match self {
            SourceError::Reference(_) => None,
            SourceError::NoFolder(_) => Some("write oci:FOLDER or oci:FOLDER:TAG".to_owned()),
            SourceError::Unsupported { hint, .. } => Some((*hint).to_owned()),
        }
    }
}

impl Source {
    /// With relative paths taken from `dir`.
    pub fn absolute(self, base: &Path) -> Source {
        match self {
            Source::Layout { dir, tag } => Source::Layout { dir: base.join(dir), tag },
            Source::Archive { kind, file, tag } => Source::Archive {
                kind,
                file: base.join(file),
                tag,
            },
            Source::Path(path) => Source::Path(base.join(path)),
            registry @ (Source::Registry(_) | Source::Artifact(_)) => registry,
        }
    }

    /// What the images that were given one name after the other have in common: the source without its tag and digest.
    pub fn repository(&self) -> String {
        match self {
            Source::Registry(reference) => format!("docker://{}/{}", reference.host(), reference.repository()),
            Source::Artifact(reference) => format!("oras://{}/{}", reference.host(), reference.repository()),
            Source::Layout { dir, .. } => format!("oci:{}", dir.display()),
            Source::Archive { file, .. } => file.display().to_string(),
            Source::Path(path) => path.display().to_string(),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(reference) = text.strip_prefix("docker://") {
            return Ok(Source::Registry(reference.parse()?));
        }
        if let Some(reference) = text.strip_prefix("oras://") {
            return Ok(Source::Artifact(reference.parse()?));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = path_and_tag(text, rest)?;
            return Ok(Source::Layout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, tag) = path_and_tag(text, rest)?;
            let kind = ArchiveKind::Oci;
            return Ok(Source::Archive { kind, file, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            // Its tags are whole names, slashes and all: `lab/x:1`.
            let (file, tag) = rest.split_once(':').map_or((rest, None), |(file, tag)| (file, Some(tag)));
            if file.is_empty() {
                return Err(SourceError::NoFolder(text.to_owned()));
            }
            return Ok(Source::Archive {
                kind: ArchiveKind::Docker,
                file: file.into(),
                tag: tag.filter(|tag| !tag.is_empty()).map(str::to_owned),
            });
        }
        let is_path = ["/", "./", "../"].iter().any(|start| text.starts_with(start)) || matches!(text, "." | "..");
        let is_file = !text.contains(':') && ENDINGS.iter().any(|ending| text.ends_with(ending));
        if is_path || is_file {
            return Ok(Source::Path(text.into()));
        }
        match unsupported(text) {
            Some((scheme, hint)) => Err(SourceError::Unsupported {
                text: text.chars().take(300).collect(),
                scheme,
                hint,
            }),
            None => Ok(Source::Registry(text.parse()?)),
        }
    }
}

fn path_and_tag(text: &str, rest: &str) -> Result<(PathBuf, Option<String>), SourceError> {
    // A colon in a folder's name is the folder's as long as a slash follows it.
    let (dir, tag) = match rest.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag).filter(|tag| !tag.is_empty())),
        _ => (rest, None),
    };
    if dir.is_empty() {
        return Err(SourceError::NoFolder(text.to_owned()));
    }
    Ok((dir.into(), tag.map(str::to_owned)))
}

/// Names that other programs read, and what to do with them here.
fn unsupported(text: &str) -> Option<(String, &'static str)> {
    const COPY: &str = "copy it to an OCI layout (`skopeo copy SOURCE oci:FOLDER:TAG`) and name that: oci:FOLDER:TAG";
    let hint = match text.split_once(':').map_or(text, |(scheme, _)| scheme) {
        "shub" => {
            "Singularity Hub is gone; its images live on as read-only SIF files at datasets.datalad.org. Name a registry: docker://HOST/NAME:TAG"
        }
        "library" => {
            "a Sylabs library serves SIF files: fetch it with `apptainer pull FILE.sif library://…` and name FILE.sif, or name the registry \
             that the image was built from: docker://HOST/NAME:TAG"
        }
        "docker-daemon" | "containers-storage" | "dir" | "ostree" => COPY,
        "http" | "https" if text.contains("://") => "write docker://HOST/NAME:TAG",
        _ if text.contains("://") => "write docker://HOST/NAME:TAG, oras://HOST/NAME:TAG, or oci:FOLDER:TAG",
        _ if text.starts_with('~') => "write the whole path: `~` is the shell's",
        _ => return None,
    };
    let scheme = match text.split_once(':') {
        Some((scheme, rest)) if rest.starts_with("//") => format!("{scheme}://"),
        Some((scheme, _)) if !scheme.contains(['/', '.']) => format!("{scheme}:"),
        _ => "a path".to_owned(),
    };
    Some((scheme, hint))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Registry(reference) => write!(f, "docker://{reference}"),
            Source::Artifact(reference) => write!(f, "oras://{reference}"),
            Source::Path(path) => write!(f, "{}", path.display()),
            Source::Layout { dir, tag: Some(tag) } => write!(f, "oci:{}:{tag}", dir.display()),
            Source::Layout { dir, tag: None } => write!(f, "oci:{}", dir.display()),
            Source::Archive { kind, file, tag } => {
                let scheme = match kind {
                    ArchiveKind::Oci => "oci-archive",
                    ArchiveKind::Docker => "docker-archive",
                };
                write!(f, "{scheme}:{}", file.display())?;
                match tag {
                    Some(tag) => write!(f, ":{tag}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_as_they_are_written() {
        for (text, whole) in [
            ("docker://gcr.io/a/b:1", "docker://gcr.io/a/b:1"),
            ("debian:12", "docker://docker.io/library/debian:12"),
            ("oci:/x/y:tag", "oci:/x/y:tag"),
            ("oci:x/y", "oci:x/y"),
            ("oci:/a:b/c", "oci:/a:b/c"),
            ("oci-archive:/x.tar:1", "oci-archive:/x.tar:1"),
            ("docker-archive:/x.tar:lab/x:1", "docker-archive:/x.tar:lab/x:1"),
            ("docker-archive:/x.tar", "docker-archive:/x.tar"),
            ("oras://ghcr.io/lab/x-sif:1", "oras://ghcr.io/lab/x-sif:1"),
            ("/images/x.sif", "/images/x.sif"),
            ("x.sif", "x.sif"),
            ("lab/x.sqfs", "lab/x.sqfs"),
            ("./rootfs", "./rootfs"),
            ("..", ".."),
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), whole);
        }
        let relative = "oci:images/x:1".parse::<Source>().unwrap().absolute(Path::new("/flow"));
        assert_eq!(relative.to_string(), "oci:/flow/images/x:1");
        let relative = "x.sif".parse::<Source>().unwrap().absolute(Path::new("/flow"));
        assert_eq!(relative.to_string(), "/flow/x.sif");
    }

    #[test]
    fn what_cannot_be_read_says_what_to_do() {
        for text in ["shub://a/b", "library://a/b/c", "~/rootfs", "https://h/a", "s3://b/k"] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(matches!(error, SourceError::Unsupported { .. }), "{text}");
            assert!(error.hint().is_some_and(|hint| hint.contains(":")), "{text}");
        }
        assert!(matches!("oci:".parse::<Source>(), Err(SourceError::NoFolder(_))));
        assert!(matches!("oras://A/b//c".parse::<Source>(), Err(SourceError::Reference(_))));
        assert!(matches!("docker://A/b//c".parse::<Source>(), Err(SourceError::Reference(_))));
    }
}
