//! What Apptainer looks for inside an image: `/.singularity.d`, links at the root, and places to mount things on.
//!
//! The scripts are POSIX sh. Every word of the image's configuration stands in them in single quotes, so nothing in it can be
//! anything but itself.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::apps::{self, App, active_script, base_script};
use super::edit::{AddedContent, Addition, When};
use super::error::ImageError;
use super::layers::Merged;
use super::sif::{SifDescription, write_sif};
use super::squashfs::{SquashfsOptions, Written};
use crate::oci::{Execution, ImageConfig};

/// Where an image came from, and when.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Apptainer's word for the kind of source: `docker`, `oci`.
    pub bootstrap: String,
    /// What is behind the scheme: `gcr.io/project/image:tag`.
    pub from: String,
    /// Unix seconds: of the files, and of the label `build-date`.
    pub created: i64,
}

/// Everything of Apptainer's that is made from an image's configuration.
#[derive(Clone, Debug)]
pub struct ApptainerFiles {
    pub additions: Vec<Addition>,
    pub description: SifDescription,
    /// Variables that have no name a shell could export; they are in `oci-config.json` alone.
    pub unexported: Vec<String>,
}

/// Adds Apptainer's files to a merged image and writes it as the SIF `out`. Returns the names of variables that could not be
/// exported.
///
/// # Errors
/// As [`write_sif`].
pub fn write_apptainer_sif(
    merged: &mut Merged,
    files: &ApptainerFiles,
    options: &SquashfsOptions,
    scratch: &Path,
    out: &Path,
) -> Result<Written, ImageError> {
    merged.add(&files.additions, scratch)?;
    write_sif(merged, &files.description, options, out)
}

/// Makes the files for `merged`. `oci_config` is the `config` object of the image's configuration, as JSON; `apps` are added to the image, whose
/// own are kept.
pub fn apptainer_files(merged: &Merged, config: &ImageConfig, oci_config: &Value, apps: &[App], origin: &Origin) -> ApptainerFiles {
    let mut shown = apps::found(merged);
    shown.extend(apps.iter().map(|app| (app.name.clone(), app.inspected())));
    shown.sort_unstable_keys();
    let run = &config.config;
    let definition = format!("bootstrap: {}\nfrom: {}\n\n", origin.bootstrap, origin.from);
    let labels = labels(config, origin);
    let runscript = runscript(run);
    let (environment, unexported) = environment(run);
    let inspect = json!({
        "data": {"attributes": {
            "apps": shown,
            "deffile": definition,
            "environment": {format!("/{D}/env/10-docker2singularity.sh"): environment, format!("/{D}/env/90-environment.sh"): EMPTY},
            "labels": labels,
            "runscript": runscript,
            "startscript": EMPTY,
        }},
        "type": "container",
    });
    let own = |name: &str, content| Addition {
        path: format!("{D}/{name}"),
        content,
        when: When::Always,
    };
    let script = |name: &str, text: &str| own(name, AddedContent::Executable(text.into()));
    let mut additions = vec![
        own("env", AddedContent::Folder),
        own("actions", AddedContent::Folder),
        own("libs", AddedContent::Folder),
        own("Singularity", AddedContent::File(definition.clone().into())),
        own("labels.json", AddedContent::File(pretty(&json!(labels)))),
        script("runscript", &runscript),
        script("startscript", EMPTY),
        script("env/01-base.sh", EMPTY),
        script("env/10-docker2singularity.sh", &environment),
        script("env/90-environment.sh", EMPTY),
        script("env/94-appsbase.sh", &base_script(shown.keys().map(String::as_str))),
        script("env/95-apps.sh", &active_script()),
        script("env/99-base.sh", BASE),
        script("env/99-runtimevars.sh", RUNTIME),
        script("actions/exec", &action("exec \"$@\"")),
        script("actions/run", &action("exec /.singularity.d/runscript \"$@\"")),
        script("actions/shell", &action("exec /bin/sh \"$@\"")),
        script("actions/start", &action("exec /.singularity.d/startscript \"$@\"")),
        script(
            "actions/test",
            &action("[ -x /.singularity.d/test ] || exit 0\nexec /.singularity.d/test \"$@\""),
        ),
    ];
    let links = [
        (".exec", ".singularity.d/actions/exec"),
        (".run", ".singularity.d/actions/run"),
        (".shell", ".singularity.d/actions/shell"),
        (".test", ".singularity.d/actions/test"),
        ("singularity", ".singularity.d/runscript"),
        ("environment", ".singularity.d/env/90-environment.sh"),
    ];
    additions.extend(links.map(|(path, target)| Addition {
        path: path.to_owned(),
        content: AddedContent::Symlink(target.to_owned()),
        when: When::Always,
    }));
    additions.extend(apps.iter().flat_map(App::additions));
    // The root is read-only when it runs: what is to be mounted on must be there.
    let folders = ["proc", "sys", "dev", "home", "root", "etc", "var"].map(|path| (path, AddedContent::Folder));
    let shared = ["tmp", "var/tmp"].map(|path| (path, AddedContent::SharedFolder));
    let files = ["hosts", "resolv.conf", "localtime", "passwd", "group"].map(|name| (name, AddedContent::File(Vec::new())));
    additions.extend(folders.into_iter().chain(shared).map(|(path, content)| Addition {
        path: path.to_owned(),
        content,
        when: When::Missing,
    }));
    additions.extend(files.map(|(name, content)| Addition {
        path: format!("etc/{name}"),
        content,
        when: When::Missing,
    }));
    ApptainerFiles {
        additions,
        description: SifDescription {
            architecture: config.architecture.clone(),
            definition,
            inspect: pretty(&inspect),
            oci_config: oci_config.to_string().into_bytes(),
            created: origin.created,
        },
        unexported,
    }
}

/// Apptainer's folder.
const D: &str = ".singularity.d";
pub(super) const EMPTY: &str = "#!/bin/sh\n";
/// Libraries that Apptainer mounts (of GPUs) come after the image's own.
const BASE: &str = "#!/bin/sh\n\
    export LD_LIBRARY_PATH=\"${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs\"\n\
    if [ -z \"${PS1:-}\" ]; then\n    PS1='Apptainer> '\nfi\n";
/// What a caller says about PATH (`APPTAINERENV_PREPEND_PATH` and its like) arrives under these names.
const RUNTIME: &str = "#!/bin/sh\n\
    if [ -n \"${SING_USER_DEFINED_PREPEND_PATH:-}\" ]; then\n    PATH=\"$SING_USER_DEFINED_PREPEND_PATH:$PATH\"\nfi\n\
    if [ -n \"${SING_USER_DEFINED_APPEND_PATH:-}\" ]; then\n    PATH=\"$PATH:$SING_USER_DEFINED_APPEND_PATH\"\nfi\n\
    if [ -n \"${SING_USER_DEFINED_PATH:-}\" ]; then\n    PATH=\"$SING_USER_DEFINED_PATH\"\nfi\n\
    unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH\n\
    export PATH\n";

fn action(last: &str) -> String {
    format!(
        "#!/bin/sh\nfor script in /.singularity.d/env/*.sh; do\n    if [ -f \"$script\" ]; then\n        . \"$script\"\n    fi\ndone\n{last}\n"
    )
}

/// The entry point as OCI has it: arguments take the place of Cmd and come after Entrypoint; with neither, a shell.
fn runscript(run: &Execution) -> String {
    let default = match (run.entrypoint.is_empty(), run.cmd.is_empty()) {
        (true, true) => Some(quoted(&["/bin/sh".to_owned()])),
        (_, false) => Some(quoted(&run.cmd)),
        (false, true) => None,
    };
    let mut script = String::from(EMPTY);
    if let Some(default) = default {
        script += &format!("if [ \"$#\" -eq 0 ]; then\n    set --{default}\nfi\n");
    }
    script += &format!("exec{} \"$@\"\n", quoted(&run.entrypoint));
    script
}

/// The image's variables: what the caller has set counts more, except for PATH. And the names that are none to a shell.
fn environment(run: &Execution) -> (String, Vec<String>) {
    let mut script = String::from(EMPTY);
    let mut unexported = Vec::new();
    for (name, value) in run.env_pairs() {
        let value = quote(value);
        if name == "PATH" {
            script += &format!("export PATH={value}\n");
        } else if is_identifier(name) {
            script += &format!("if [ -z \"${{{name}:-}}\" ]; then\n    export {name}={value}\nfi\n");
        } else {
            unexported.push(name.to_owned());
        }
    }
    (script, unexported)
}

fn labels(config: &ImageConfig, origin: &Origin) -> IndexMap<String, String> {
    let mut labels = config.config.labels.clone();
    let date = jiff::Timestamp::from_second(origin.created).unwrap_or_default();
    let own = [
        ("schema-version", "1.0".to_owned()),
        ("build-arch", config.architecture.clone()),
        ("build-date", date.to_string()),
        ("usage.singularity.deffile.bootstrap", origin.bootstrap.clone()),
        ("usage.singularity.deffile.from", origin.from.clone()),
    ];
    for (name, value) in own {
        labels.insert(format!("org.label-schema.{name}"), value);
    }
    labels
}

pub(super) fn pretty(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("a value made of strings and maps")
}

/// Each word quoted, a space before it.
pub(super) fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!(" {}", quote(word))).collect()
}

/// A word in single quotes; one in it stands in double quotes, as the shell inside Apptainer 1.4 does not read `\'`. A NUL, which no argument can hold, ends it, as it would in the kernel.
pub(super) fn quote(word: &str) -> String {
    let word = word.split('\0').next().unwrap_or_default();
    format!("'{}'", word.replace('\'', r#"'"'"'"#))
}

pub(super) fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|character| character.is_ascii_alphanumeric() || character == '_')
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Words that a careless script would change.
    const WORDS: [&str; 8] = ["", "a b", "$HOME", "`id`", "it's", "\"q\"", "back\\slash", "new\nline"];

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Runs a runscript whose program prints its arguments, each ended by a NUL.
    fn run(entrypoint: &[&str], cmd: &[&str], args: &[&str]) -> Vec<String> {
        let run = Execution {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..Execution::default()
        };
        let output = Command::new("sh")
            .arg("-c")
            .arg(runscript(&run))
            .arg("runscript")
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    #[test]
    fn arguments_take_the_place_of_cmd_and_no_word_changes() {
        let print = ["printf", "%s\\0"];
        assert_eq!(run(&print, &WORDS, &[]), WORDS);
        assert_eq!(run(&print, &["default"], &WORDS), WORDS);
        assert_eq!(run(&print, &[], &WORDS), WORDS);
        assert_eq!(run(&[], &["printf", "%s\\0", "$x"], &[]), ["$x"]);
        assert_eq!(run(&[], &["false"], &["printf", "%s\\0", "mine"]), ["mine"]);
        assert_eq!(run(&[], &[], &["printf", "%s\\0", "mine"]), ["mine"]);
    }

    #[test]
    fn variables_survive_and_the_callers_count_more() {
        let run = Execution {
            env: WORDS
                .iter()
                .enumerate()
                .map(|(at, word)| format!("V{at}={word}"))
                .chain(["PATH=/image".into(), "a.b=c".into()])
                .collect(),
            ..Execution::default()
        };
        let (script, unexported) = environment(&run);
        assert_eq!(unexported, ["a.b"]);
        let print = format!("{script}for n in 0 1 2 3 4 5 6 7; do eval \"printf '%s\\0' \\\"\\$V$n\\\"\"; done; printf '%s\\0' \"$PATH\"");
        let output = Command::new("/bin/sh")
            .env_clear()
            .env("V1", "mine")
            .env("PATH", "/caller")
            .arg("-c")
            .arg(print)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut wanted = words(&WORDS);
        wanted[1] = "mine".into();
        wanted.push("/image".into());
        assert_eq!(text.split_terminator('\0').collect::<Vec<_>>(), wanted);
    }
}
