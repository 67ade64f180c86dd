//! Which host folders a task sees, and where. Pure: whether a source exists is the engine's to find out.
//!
//! What is bound, the first that says where winning:
//!
//! 1. the stage's own `binds`;
//! 2. the data sets that the stage names, read-only, at their own paths;
//! 3. the workflow's folder at its own path, writable where it is the working directory;
//! 4. a relative `workdir`, writable;
//! 5. the folders of what the task writes, writable, and of what the stages before it wrote, read-only.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::workflow::BindMode;

/// A bind with absolute paths on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedBind {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    pub mode: BindMode,
    /// Leave it out when the source is missing.
    pub optional: bool,
    /// Make the folder when it is missing: it is where outputs go.
    pub create: bool,
}

/// Two different sources at one target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("both {} and {} are bound at {}", first.display(), second.display(), target.display())]
pub struct BindConflict {
    pub first: PathBuf,
    pub second: PathBuf,
    pub target: PathBuf,
}

/// Everything that a task is to see; all paths are absolute.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// The stage's `binds`, expanded; their `create` is worked out here.
    pub explicit: Vec<ResolvedBind>,
    pub data: Vec<PathBuf>,
    /// The workflow's folder.
    pub dir: PathBuf,
    /// A working directory below the workflow's folder; `None`: that folder itself.
    pub work: WorkFolder,
    /// Folders of the task's outputs.
    pub written: Vec<PathBuf>,
    /// Folders of the outputs of stages before it.
    pub needed: Vec<PathBuf>,
}

/// Where a task works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WorkFolder {
    /// In the workflow's folder.
    #[default]
    Workflow,
    /// In a folder of its own on the host.
    Own(PathBuf),
    /// In a folder of the container.
    Inside,
}

/// The binds of a task: explicit ones first, no target twice.
///
/// # Errors
///
/// When two explicit binds have one target and different sources.
pub fn resolve(sight: Sight) -> Result<Vec<ResolvedBind>, BindConflict> {
    let mut binds: Vec<ResolvedBind> = Vec::new();
    for mut bind in sight.explicit {
        let made = sight.written.iter().chain(&sight.needed);
        bind.create = made.into_iter().any(|folder| folder.starts_with(&bind.source));
        match binds.iter_mut().find(|other| other.target == bind.target) {
            Some(other) if other.source != bind.source => {
                return Err(BindConflict {
                    first: other.source.clone(),
                    second: bind.source,
                    target: bind.target,
                });
            }
            Some(other) => *other = bind,
            None => binds.push(bind),
        }
    }
    let own = match sight.work {
        WorkFolder::Own(path) => Some(path),
        WorkFolder::Workflow | WorkFolder::Inside => None,
    };
    let itself = |path: PathBuf, mode: BindMode| ResolvedBind {
        target: path.clone(),
        source: path,
        mode,
        optional: false,
        create: false,
    };
    let made = |path: PathBuf, mode: BindMode| ResolvedBind {
        create: true,
        ..itself(path, mode)
    };
    let data = sight.data.into_iter().map(|path| itself(path, BindMode::ReadOnly));
    let written = own.into_iter().chain(sight.written).map(|path| made(path, BindMode::ReadWrite));
    let needed = sight.needed.into_iter().map(|path| made(path, BindMode::ReadOnly));
    for bind in data
        .chain([itself(sight.dir.clone(), BindMode::ReadOnly)])
        .chain(written)
        .chain(needed)
    {
        imply(&mut binds, bind);
    }
    keep_state(&mut binds, &sight.dir.join(STATE));
    Ok(binds)
}

/// The folder of runs, beside the workflow file.
const STATE: &str = ".dvrun";

/// Wherever the folder of runs is seen through a writable bind, it is read-only: what a task of an untrusted image could write
/// there would decide what later tasks run.
fn keep_state(binds: &mut Vec<ResolvedBind>, state: &Path) {
    let seen = |bind: &ResolvedBind| {
        let below = state.strip_prefix(&bind.source).ok().filter(|_| bind.mode == BindMode::ReadWrite)?;
        Some(ResolvedBind {
            source: state.to_owned(),
            target: bind.target.join(below),
            mode: BindMode::ReadOnly,
            optional: true,
            create: false,
        })
    };
    let kept: Vec<ResolvedBind> = binds.iter().filter_map(seen).collect();
    binds.extend(kept);
}

/// Adds a bind of a path at itself unless something else is bound there; writable where anyone writes.
fn imply(binds: &mut Vec<ResolvedBind>, bind: ResolvedBind) {
    // The root of the host would hide the image.
    if bind.target == Path::new("/") {
        return;
    }
    match binds.iter_mut().find(|other| other.target == bind.target) {
        Some(other) if other.source == bind.source => {
            other.create |= bind.create;
            if bind.mode == BindMode::ReadWrite {
                other.mode = bind.mode;
            }
        }
        Some(_) => {}
        None => binds.push(bind),
    }
}

/// The folder that an output pattern's files are in, as far as it has no `*`, `?`, `[`, `{` or `\`.
pub fn fixed_folder(pattern: &str) -> &str {
    let fixed = pattern.find(['*', '?', '[', '{', '\\']).map_or(pattern, |at| &pattern[..at]);
    match fixed.rfind('/') {
        Some(0) => "/",
        Some(at) => &fixed[..at],
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, target: &str, mode: BindMode) -> ResolvedBind {
        ResolvedBind {
            source: source.into(),
            target: target.into(),
            mode,
            optional: false,
            create: false,
        }
    }

    fn shown(binds: &[ResolvedBind]) -> Vec<String> {
        binds
            .iter()
            .map(|bind| {
                let mode = match bind.mode {
                    BindMode::ReadOnly => "ro",
                    BindMode::ReadWrite => "rw",
                };
                let create = if bind.create { " create" } else { "" };
                format!("{}:{}:{mode}{create}", bind.source.display(), bind.target.display())
            })
            .collect()
    }

    #[test]
    fn everything_declared_is_seen_at_its_own_path() {
        let sight = Sight {
            explicit: vec![bind("/w/work", "/dv2/work", BindMode::ReadWrite)],
            data: vec!["/store/input".into(), "/store/input".into()],
            dir: "/w".into(),
            work: WorkFolder::Workflow,
            written: vec!["/w/work/calls".into()],
            needed: vec!["/w/work".into(), "/w".into()],
        };
        assert_eq!(
            shown(&resolve(sight).unwrap()),
            [
                "/w/work:/dv2/work:rw create",
                "/store/input:/store/input:ro",
                "/w:/w:ro create",
                "/w/work/calls:/w/work/calls:rw create",
                "/w/work:/w/work:ro create",
            ]
        );
    }

    #[test]
    fn a_folder_that_is_written_is_writable_even_where_others_only_read_it() {
        let sight = Sight {
            explicit: vec![
                bind("/w/work", "/w/work", BindMode::ReadOnly),
                bind("/other", "/w/x", BindMode::ReadWrite),
            ],
            dir: "/w".into(),
            work: WorkFolder::Own("/w/here".into()),
            written: vec!["/w/work".into(), "/w/x".into()],
            needed: vec!["/w/here".into(), "/".into()],
            ..Sight::default()
        };
        assert_eq!(
            shown(&resolve(sight).unwrap()),
            [
                "/w/work:/w/work:rw create",
                "/other:/w/x:rw",
                "/w:/w:ro",
                "/w/here:/w/here:rw create",
            ]
        );
    }

    #[test]
    fn two_sources_at_one_target_are_refused() {
        let sight = Sight {
            explicit: vec![bind("/a", "/t", BindMode::ReadOnly), bind("/b", "/t", BindMode::ReadOnly)],
            dir: "/w".into(),
            ..Sight::default()
        };
        assert_eq!(resolve(sight).unwrap_err().to_string(), "both /a and /b are bound at /t");
    }

    #[test]
    fn the_fixed_folder_ends_where_patterns_begin() {
        for (pattern, folder) in [
            ("a.vcf", ""),
            ("work/a.vcf", "work"),
            ("work/*/a.vcf", "work"),
            ("work/x*/a", "work"),
            ("/a", "/"),
            ("/abs/dir/{a,b}.gz", "/abs/dir"),
            ("work/dir/", "work/dir"),
        ] {
            assert_eq!(fixed_folder(pattern), folder, "{pattern}");
        }
    }
}
