//! Apps of the Scientific Filesystem (SCIF 1.0) inside an image: `/scif/apps/NAME`.
//!
//! Two layouts exist. Apptainer's has `scif/env/*.sh` and starts where the caller is; the reference tool's has
//! `scif/environment.sh` and starts in the app's root. Both are read; both start where the container starts.

use std::path::{Path, PathBuf};

use super::container::Root;
use super::inside::Kind;
use super::look::{LookError, Tree};

const APPS: &str = "/scif/apps";
const DATA: &str = "/scif/data";

/// Why an app cannot be run.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AppError {
    #[error("the image has no app `{name}` ({})", listed(.known))]
    Unknown { name: String, known: Vec<String> },
    #[error("the app `{name}` has nothing to run: {path} is missing in the image")]
    NoRunscript { name: String, path: PathBuf },
    #[error("{path} of the image cannot be read")]
    Unreadable { path: PathBuf, source: LookError },
}

impl AppError {
    /// The nearest name, or where to look.
    pub fn hint(&self) -> Option<String> {
        match self {
            AppError::Unknown { name, known } => {
                let close = |other: &&String| strsim::damerau_levenshtein(name, other) <= 1 + name.chars().count() / 4;
                let nearest = known
                    .iter()
                    .filter(close)
                    .min_by_key(|other| strsim::damerau_levenshtein(name, other))?;
                Some(format!("did you mean `{nearest}`?"))
            }
            AppError::NoRunscript { .. } => Some("give the program with `run` instead".to_owned()),
            AppError::Unreadable { .. } => None,
        }
    }
}

fn listed(known: &[String]) -> String {
    if known.is_empty() {
        "it has no apps at all".to_owned()
    } else {
        format!("it has {}", known.join(", "))
    }
}

/// How an app is started.
#[derive(Clone, Debug, PartialEq)]
pub struct App {
    pub argv: Vec<String>,
    /// The `SCIF_*` variables; they stand before what the stage declares.
    pub env: Vec<(String, String)>,
}

/// The names of the apps in the image, sorted.
pub fn apps(root: &Root) -> Result<Vec<String>, AppError> {
    names(&opened(root)?)
}

/// The app `name` of the image, called with `args`.
///
/// Its environment files are sourced in order of their names, its `bin` comes first on `PATH` and its `lib` on
/// `LD_LIBRARY_PATH`; its runscript's exit status is the program's.
pub fn app(root: &Root, name: &str, args: &[String]) -> Result<App, AppError> {
    let root = opened(root)?;
    let known = names(&root)?;
    if !known.iter().any(|other| other == name) {
        return Err(AppError::Unknown {
            name: name.to_owned(),
            known,
        });
    }
    let base = Path::new(APPS).join(name);
    let runscript = base.join("scif/runscript");
    if !is_file(&root, &runscript)? {
        return Err(AppError::NoRunscript {
            name: name.to_owned(),
            path: runscript,
        });
    }
    let mut sourced = Vec::new();
    for file in entries(&root, &base.join("scif/env"))? {
        let path = base.join("scif/env").join(&file);
        if file.ends_with(".sh") && is_file(&root, &path)? {
            sourced.push(path);
        }
    }
    let single = base.join("scif/environment.sh");
    if is_file(&root, &single)? {
        sourced.push(single);
    }
    Ok(App {
        argv: argv(&sourced, &runscript, args),
        env: variables(&root, name, &known)?,
    })
}

/// Sources the `$1` files that follow, then becomes the runscript with the arguments that are left.
///
/// In a function the files see no arguments. What is no program by itself is the shell's.
const START: &str = r#"dvrun_source() { . "$1"; }
if [ -d "$SCIF_APPBIN" ]; then PATH="$SCIF_APPBIN:$PATH"; export PATH; fi
if [ -d "$SCIF_APPLIB" ]; then LD_LIBRARY_PATH="$SCIF_APPLIB${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"; export LD_LIBRARY_PATH; fi
dvrun_left=$1
shift
while [ "$dvrun_left" -gt 0 ]; do
    dvrun_source "$1"
    shift
    dvrun_left=$((dvrun_left - 1))
done
unset dvrun_left
unset -f dvrun_source
if [ -x "$1" ]; then exec "$@"; fi
exec /bin/sh "$@"
"#;

/// Paths and arguments are words of their own, so that nothing needs quoting.
fn argv(sourced: &[PathBuf], runscript: &Path, args: &[String]) -> Vec<String> {
    let words = [
        "/bin/sh".to_owned(),
        "-c".to_owned(),
        START.to_owned(),
        "app".to_owned(),
        sourced.len().to_string(),
    ];
    let files = sourced
        .iter()
        .map(PathBuf::as_path)
        .chain([runscript])
        .map(|path| path.to_string_lossy().into_owned());
    words.into_iter().chain(files).chain(args.iter().cloned()).collect()
}

/// Of the active app under their plain names, of every app with `_NAME` appended.
fn variables(root: &Tree, active: &str, known: &[String]) -> Result<Vec<(String, String)>, AppError> {
    let mut env = vec![("SCIF_APPS".to_owned(), APPS.to_owned()), ("SCIF_DATA".to_owned(), DATA.to_owned())];
    env.push(("SCIF_APPNAME".to_owned(), active.to_owned()));
    env.extend(of_app(root, active)?.into_iter().map(|(name, value)| (name.to_owned(), value)));
    for app in known {
        let suffix: String = app.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        env.push((format!("SCIF_APPNAME_{suffix}"), app.clone()));
        env.extend(
            of_app(root, app)?
                .into_iter()
                .map(|(name, value)| (format!("{name}_{suffix}"), value)),
        );
    }
    Ok(env)
}

fn of_app(root: &Tree, name: &str) -> Result<Vec<(&'static str, String)>, AppError> {
    let base = format!("{APPS}/{name}");
    let data = format!("{DATA}/{name}");
    let meta = format!("{base}/scif");
    // What the reference tool names otherwise.
    let either = |first: &str, second: &str| -> Result<String, AppError> {
        let (first, second) = (format!("{meta}/{first}"), format!("{meta}/{second}"));
        Ok(if !exists(root, Path::new(&first))? && exists(root, Path::new(&second))? {
            second
        } else {
            first
        })
    };
    Ok(vec![
        ("SCIF_APPBIN", format!("{base}/bin")),
        ("SCIF_APPLIB", format!("{base}/lib")),
        ("SCIF_APPDATA", data.clone()),
        ("SCIF_APPINPUT", format!("{data}/input")),
        ("SCIF_APPOUTPUT", format!("{data}/output")),
        ("SCIF_APPENV", either("env/90-environment.sh", "environment.sh")?),
        ("SCIF_APPHELP", format!("{meta}/runscript.help")),
        ("SCIF_APPRUN", format!("{meta}/runscript")),
        ("SCIF_APPLABELS", format!("{meta}/labels.json")),
        ("SCIF_APPTEST", either("test", "test.sh")?),
        ("SCIF_APPROOT", base),
        ("SCIF_APPMETA", meta),
    ])
}

fn names(root: &Tree) -> Result<Vec<String>, AppError> {
    let mut known = Vec::new();
    for name in entries(root, Path::new(APPS))? {
        if kind(root, &Path::new(APPS).join(&name))? == Some(Kind::Folder) {
            known.push(name);
        }
    }
    Ok(known)
}

/// The names in a folder of the image, sorted; none when there is no such folder. One that is no text cannot be asked for.
fn entries(root: &Tree, folder: &Path) -> Result<Vec<String>, AppError> {
    root.names(folder).map_err(unreadable(folder))
}

fn is_file(root: &Tree, path: &Path) -> Result<bool, AppError> {
    Ok(kind(root, path)? == Some(Kind::File))
}

fn exists(root: &Tree, path: &Path) -> Result<bool, AppError> {
    Ok(kind(root, path)?.is_some())
}

fn kind(root: &Tree, path: &Path) -> Result<Option<Kind>, AppError> {
    root.kind(path).map_err(unreadable(path))
}

fn opened(root: &Root) -> Result<Tree, AppError> {
    let (Root::Folder(path) | Root::Squashfs { file: path, .. }) = root;
    Tree::open(root).map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl FnOnce(LookError) -> AppError + use<'_> {
    |source| AppError::Unreadable {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(image: &tempfile::TempDir) -> Root {
        Root::Folder(image.path().to_owned())
    }

    fn image(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn an_unknown_app_is_told_from_those_that_are_there() {
        let image = image(&[("scif/apps/make_examples/scif/runscript", ""), ("scif/apps/call/scif/test", "")]);
        assert_eq!(apps(&root(&image)).unwrap(), ["call", "make_examples"]);
        let error = app(&root(&image), "make-example", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image has no app `make-example` (it has call, make_examples)"
        );
        assert_eq!(error.hint().unwrap(), "did you mean `make_examples`?");
        assert_eq!(app(&root(&image), "..", &[]).unwrap_err().hint(), None);
        let none = tempfile::tempdir().unwrap();
        assert_eq!(apps(&root(&none)).unwrap(), [""; 0]);
        assert!(app(&root(&none), "x", &[]).unwrap_err().to_string().contains("no apps at all"));
        // The test is no substitute for what is to be run.
        let error = app(&root(&image), "call", &[]).unwrap_err();
        assert!(matches!(&error, AppError::NoRunscript { path, .. } if path == Path::new("/scif/apps/call/scif/runscript")));
    }

    #[test]
    fn variables_of_the_active_app_and_of_each() {
        let image = image(&[
            ("scif/apps/a-b/scif/runscript", ""),
            ("scif/apps/a-b/scif/environment.sh", ""),
            ("scif/apps/a-b/scif/test.sh", ""),
            ("scif/apps/c/scif/runscript", ""),
            ("scif/apps/c/scif/env/90-environment.sh", ""),
        ]);
        let env = app(&root(&image), "a-b", &[]).unwrap().env;
        let value = |name: &str| env.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
        for (name, expected) in [
            ("SCIF_APPS", "/scif/apps"),
            ("SCIF_DATA", "/scif/data"),
            ("SCIF_APPNAME", "a-b"),
            ("SCIF_APPNAME_a_b", "a-b"),
            ("SCIF_APPROOT", "/scif/apps/a-b"),
            ("SCIF_APPROOT_c", "/scif/apps/c"),
            ("SCIF_APPMETA_a_b", "/scif/apps/a-b/scif"),
            ("SCIF_APPENV", "/scif/apps/a-b/scif/environment.sh"),
            ("SCIF_APPENV_c", "/scif/apps/c/scif/env/90-environment.sh"),
            ("SCIF_APPTEST", "/scif/apps/a-b/scif/test.sh"),
            ("SCIF_APPTEST_c", "/scif/apps/c/scif/test"),
            ("SCIF_APPDATA_c", "/scif/data/c"),
            ("SCIF_APPINPUT", "/scif/data/a-b/input"),
            ("SCIF_APPOUTPUT_a_b", "/scif/data/a-b/output"),
            ("SCIF_APPLABELS", "/scif/apps/a-b/scif/labels.json"),
            ("SCIF_APPHELP", "/scif/apps/a-b/scif/runscript.help"),
            ("SCIF_APPRUN_c", "/scif/apps/c/scif/runscript"),
            ("SCIF_APPBIN", "/scif/apps/a-b/bin"),
            ("SCIF_APPLIB_c", "/scif/apps/c/lib"),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
        assert_eq!(env.len(), 2 + 13 * 3);
    }

    #[test]
    fn a_link_out_of_the_image_finds_nothing_of_the_host() {
        let outside = image(&[("apps/evil/scif/runscript", "")]);
        let image = tempfile::tempdir().unwrap();
        symlink(outside.path(), image.path().join("scif")).unwrap();
        assert_eq!(apps(&root(&image)).unwrap(), [""; 0]);
    }
}
