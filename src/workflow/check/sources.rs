//! `images` and `data`: what to have, and where from.

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::super::paths;
use super::super::problem::{Problems, nearest, suggest};
use super::super::raw::{Key, Kind, Node};
use super::super::{App, DataFile, DataSet, DataSource, Image, Template};
use super::fields::{self, Fields, entries, list, shown};
use super::names;
use super::templates::{self, Declared, Reach};
use crate::oci::{Digest, Source, SourceError};

const SCHEMES: [&str; 4] = ["https", "http", "file", "gs"];
const IMAGE_SCHEMES: [&str; 5] = ["docker", "oras", "oci", "oci-archive", "docker-archive"];
const IMAGE_EXAMPLE: &str = "docker://registry.example.org/lab/tools:1.0";

/// `images`.
pub fn images(node: &Node, file: &str, dir: &Path, declared: &Declared<'_>, problems: &mut Problems) -> IndexMap<String, Image> {
    let mut images = IndexMap::new();
    for (key, node) in entries(node, "`images`", problems).unwrap_or_default() {
        names::check(key, "an image", problems);
        if key.text == "none" {
            problems.add(key.span.clone(), "`none` is the host itself: an image cannot be called so");
        }
        images.extend(image(node, file, dir, declared, problems).map(|image| (key.text.clone(), image)));
    }
    images
}

fn image(node: &Node, file: &str, dir: &Path, declared: &Declared<'_>, problems: &mut Problems) -> Option<Image> {
    let Kind::Map(_) = &node.kind else {
        return Some(Image {
            source: image_source(node, file, dir, declared, problems)?,
            platform: None,
            apps: IndexMap::new(),
        });
    };
    let fields = Fields::read(node, "an image", &["source", "platform", "apps"], problems)?;
    let apps = fields
        .get("apps")
        .map(|node| apps(node, file, declared, problems))
        .unwrap_or_default();
    let platform = fields.get("platform").and_then(|node| {
        let text = fields::text(node, "`platform`", "linux/amd64", problems)?;
        let parts: Vec<&str> = text.split('/').collect();
        let well = (2..=3).contains(&parts.len())
            && parts
                .iter()
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
        if !well {
            problems.hint(
                node.span.clone(),
                format!("`{}` is not a platform", shown(text)),
                "write `linux/amd64` or `linux/arm64/v8`".to_owned(),
            );
        }
        well.then(|| text.to_owned())
    });
    let Some(source) = fields.get("source") else {
        problems.hint(
            node.span.clone(),
            "this image has no `source`",
            format!("add `source: {IMAGE_EXAMPLE}`"),
        );
        return None;
    };
    Some(Image {
        source: image_source(source, file, dir, declared, problems)?,
        platform,
        apps,
    })
}

fn image_source(node: &Node, file: &str, dir: &Path, declared: &Declared<'_>, problems: &mut Problems) -> Option<String> {
    let source = templates::text(node, "an image", IMAGE_EXAMPLE, file, declared, problems)?;
    let parsed: Result<Source, SourceError> = source.parse();
    if let Ok(Source::Path(_)) = parsed
        && !source.contains('\0')
    {
        return Some(paths::absolute(dir, &source).display().to_string());
    }
    let (scheme, rest) = source.split_once(':').unwrap_or(("", &source));
    let slashes = |name: &str| scheme != name || rest.starts_with("//");
    let known = IMAGE_SCHEMES.contains(&scheme) && slashes("docker") && slashes("oras");
    let near = nearest(scheme, IMAGE_SCHEMES);
    if !known && (near.is_some() || !matches!(parsed, Err(SourceError::Unsupported { .. }))) {
        let rest = rest.trim_start_matches("//");
        let hint = match near {
            Some(scheme @ ("docker" | "oras")) => format!("did you mean `{scheme}://{}`?", rest.trim_start_matches('/')),
            Some(scheme) => format!("did you mean `{scheme}:{rest}`?"),
            None => format!("an image is `{IMAGE_EXAMPLE}`, or `./FILE.sif`, `./FOLDER` or `oci:FOLDER[:TAG]` on disk"),
        };
        problems.hint(
            node.span.clone(),
            format!("`{}` does not say where the image comes from", shown(&source)),
            hint,
        );
        return None;
    }
    if rest.trim_start_matches("//").is_empty() || rest.contains('\0') {
        problems.hint(
            node.span.clone(),
            format!("`{}` names no image", shown(&source)),
            format!("for example `{IMAGE_EXAMPLE}`"),
        );
        return None;
    }
    match parsed {
        Ok(Source::Registry(_) | Source::Artifact(_)) => Some(source),
        // The tag after a colon is no part of the path, and stays as it is.
        Ok(_) => Some(format!(
            "{scheme}:{}",
            paths::absolute(dir, rest.trim_start_matches("//")).display()
        )),
        Err(error) => {
            problems.hint(node.span.clone(), error.to_string(), error.hint());
            None
        }
    }
}

fn apps(node: &Node, file: &str, declared: &Declared<'_>, problems: &mut Problems) -> IndexMap<String, App> {
    let mut apps = IndexMap::new();
    for (key, node) in entries(node, "`apps`", problems).unwrap_or_default() {
        names::check(key, "an app", problems);
        let Some(fields) = Fields::read(node, "an app", &["help", "run", "env"], problems) else {
            continue;
        };
        let help = fields
            .get("help")
            .and_then(|node| fields::text(node, "`help`", "Sort reads", problems));
        // What an app says about its task is checked where a stage uses it: only there is a task.
        let reach = Reach::TASK;
        let run = match fields.get("run") {
            Some(node) => super::stage::templates(node, "`run` of an app", "[program, --option]", file, reach, declared, problems),
            None => Vec::new(),
        };
        let env = match fields.get("env") {
            Some(node) => super::stage::environment(node, file, reach, declared, problems),
            None => IndexMap::new(),
        };
        if run.is_empty() {
            problems.hint(
                key.span.clone(),
                format!("app `{}` runs nothing", shown(&key.text)),
                "add `run: [program, --option]`".to_owned(),
            );
            continue;
        }
        apps.insert(
            key.text.clone(),
            App {
                help: help.map(str::to_owned),
                run: run.into_iter().map(Template).collect(),
                env,
            },
        );
    }
    apps
}

/// `data`.
pub fn data(node: &Node, file: &str, dir: &Path, declared: &Declared<'_>, problems: &mut Problems) -> IndexMap<String, DataSet> {
    let mut sets = IndexMap::new();
    for (key, node) in entries(node, "`data`", problems).unwrap_or_default() {
        names::check(key, "a data set", problems);
        let source = data_source(key, node, file, dir, declared, problems);
        // A set with mistakes in it is still one that templates may name.
        let source = source.unwrap_or_else(|| DataSource::Path(PathBuf::new()));
        sets.insert(key.text.clone(), DataSet { source });
    }
    sets
}

fn data_source(key: &Key, node: &Node, file: &str, dir: &Path, declared: &Declared<'_>, problems: &mut Problems) -> Option<DataSource> {
    const KEYS: [&str; 6] = ["base", "files", "url", "sha256", "unpack", "path"];
    let fields = Fields::read(node, "a data set", &KEYS, problems)?;
    let kinds: Vec<&str> = ["files", "url", "path"]
        .into_iter()
        .filter(|key| fields.get(key).is_some())
        .collect();
    let &[kind] = kinds.as_slice() else {
        let what = match kinds.as_slice() {
            [] => "says not where it comes from".to_owned(),
            many => format!("has {} at once", many.join(" and ")),
        };
        problems.hint(
            key.span.clone(),
            format!("data set `{}` {what}", shown(&key.text)),
            "it is `{base, files}`, `{url, sha256, unpack: true}` or `{path}`".to_owned(),
        );
        return None;
    };
    for (other, with) in [("base", "files"), ("sha256", "url"), ("unpack", "url")] {
        if kind != with
            && let Some(place) = fields.key(other)
        {
            problems.add(place, format!("`{other}` goes with `{with}`, not with `{kind}`"));
        }
    }
    let source = fields.get(kind)?;
    match kind {
        "path" => {
            let path = templates::text(source, "`path`", "/proj/cohort", file, declared, problems)?;
            Some(DataSource::Path(paths::absolute(dir, &path)))
        }
        "url" => {
            let url = templates::text(source, "`url`", "https://example.org/model.tar.gz", file, declared, problems)?;
            let url = url_of(source, &url, dir, problems)?;
            let digest = fields.get("sha256").and_then(|node| digest(node, file, declared, problems));
            let name = file_name(&url);
            check_file_name(source.span.clone(), &name, problems)?;
            let file = DataFile { name, url, digest };
            let unpack = fields.get("unpack").and_then(|node| fields::boolean(node, "`unpack`", problems));
            Some(match unpack {
                Some(true) => DataSource::Archive(file),
                _ => DataSource::Files(vec![file]),
            })
        }
        _ => {
            let base = fields.get("base").map(|node| {
                let base = templates::text(node, "`base`", "https://example.org/data/", file, declared, problems)?;
                let base = url_of(node, &base, dir, problems)?;
                Some(if base.ends_with('/') { base } else { base + "/" })
            });
            files(source, base, file, dir, declared, problems).map(DataSource::Files)
        }
    }
}

/// `base` is `None` where there is none, `Some(None)` where it is wrong.
fn files(
    node: &Node,
    base: Option<Option<String>>,
    file: &str,
    dir: &Path,
    declared: &Declared<'_>,
    problems: &mut Problems,
) -> Option<Vec<DataFile>> {
    let mut written: Vec<(&Node, String, Range<usize>, Option<Digest>)> = Vec::new();
    if let Kind::Map(files) = &node.kind {
        for (key, node) in files {
            let digest = (!node.is_null()).then(|| digest(node, file, declared, problems)).flatten();
            written.push((node, key.text.clone(), key.span.clone(), digest));
        }
    } else {
        for node in list(node, "`files`", "{reads.bam: sha256:…}", problems) {
            if let Some(name) = templates::text(node, "a file", "reads.bam", file, declared, problems) {
                written.push((node, name, node.span.clone(), None));
            }
        }
    }
    if written.is_empty() {
        problems.add(node.span.clone(), "`files` names no file");
        return None;
    }
    let mut files: Vec<DataFile> = Vec::new();
    for (node, name, place, digest) in written {
        let whole = name.contains("://") || name.starts_with("file:");
        let (name, url) = if whole {
            let Some(url) = url_of(node, &name, dir, problems) else { continue };
            (file_name(&url), url)
        } else {
            let url = match &base {
                Some(Some(base)) => format!("{base}{}", encode(&name)),
                Some(None) => String::new(),
                None => {
                    problems.hint(
                        place.clone(),
                        format!("`{}` is no URL, and there is no `base`", shown(&name)),
                        "add `base: https://…/`".to_owned(),
                    );
                    continue;
                }
            };
            (name, url)
        };
        if check_file_name(place.clone(), &name, problems).is_none() {
            continue;
        }
        if files.iter().any(|other| other.name == name) {
            problems.add(place, format!("two files are called `{}`", shown(&name)));
            continue;
        }
        files.push(DataFile { name, url, digest });
    }
    Some(files)
}

fn digest(node: &Node, file: &str, declared: &Declared<'_>, problems: &mut Problems) -> Option<Digest> {
    let text = templates::text(node, "a checksum", "sha256:9f86d081…", file, declared, problems)?;
    let whole = match text.contains(':') {
        true => text.clone(),
        false => format!("sha256:{text}"),
    };
    match whole.to_ascii_lowercase().parse() {
        Ok(digest) => Some(digest),
        Err(_) => {
            problems.hint(
                node.span.clone(),
                format!("`{}` is not a checksum", shown(&text)),
                "write `sha256:` and 64 hexadecimal digits".to_owned(),
            );
            None
        }
    }
}

/// A whole URL; `file:` with a relative path is made absolute.
fn url_of(node: &Node, text: &str, dir: &Path, problems: &mut Problems) -> Option<String> {
    let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
    if !SCHEMES.contains(&scheme) {
        let hint = suggest(scheme, SCHEMES).filter(|_| !scheme.is_empty());
        let hint = hint.unwrap_or_else(|| format!("known: {} (a folder on this host is `{{path: …}}`)", SCHEMES.join(", ")));
        let what = match scheme {
            "" => format!("`{}` is not a URL", shown(text)),
            _ => format!("unknown URL scheme `{}`", shown(scheme)),
        };
        problems.hint(node.span.clone(), what, hint);
        return None;
    }
    if text.contains(|c: char| c.is_control() || c == ' ') {
        problems.add(node.span.clone(), format!("`{}` has a blank in it", shown(text)));
        return None;
    }
    if scheme == "file" {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if path.is_empty() {
            problems.add(node.span.clone(), "this URL names no file");
            return None;
        }
        let slash = if path.ends_with('/') { "/" } else { "" };
        let folder = format!("{}", paths::absolute(dir, path).display());
        return Some(format!(
            "file://{}{slash}",
            folder.split('/').map(encode).collect::<Vec<_>>().join("/")
        ));
    }
    let host = rest.strip_prefix("//").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if host.is_empty() {
        problems.hint(
            node.span.clone(),
            format!("`{}` names no host", shown(text)),
            format!("for example `{scheme}://example.org/file`"),
        );
        return None;
    }
    Some(text.to_owned())
}

fn check_file_name(place: Range<usize>, name: &str, problems: &mut Problems) -> Option<()> {
    let wrong = match name {
        "" => Some("there is no file name in it".to_owned()),
        "." | ".." => Some(format!("`{name}` is no file name")),
        _ if name.contains('/') => Some(format!("`{}` is a path: a file's name has no `/`", shown(name))),
        _ if name.contains(char::is_control) || name.len() > 255 => Some(format!("`{}` is no file name", shown(name))),
        _ => None,
    };
    match wrong {
        Some(message) => {
            problems.add(place, message);
            None
        }
        None => Some(()),
    }
}

/// The last part of a URL's path, as it stands there.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Percent-encodes what would end or change a URL's path; `+` is a letter like any other there (RFC 3986, 3.3).
fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'%' | b'?' | b'#' | b'\\' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                encoded.push_str(&format!("%{byte:02X}"));
            }
            0x21..=0x7e => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
