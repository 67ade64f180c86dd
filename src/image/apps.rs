//! SCIF apps (the Scientific Filesystem, sci-f.github.io): several programs of one image, each with its own environment,
//! chosen by `apptainer run --app NAME`.
//!
//! ```text
//! /scif/apps/NAME/{bin,lib}                       on PATH and LD_LIBRARY_PATH when NAME is the active app
//! /scif/apps/NAME/scif/{runscript,runscript.help,labels.json,Singularity.NAME,env/{01-base,90-environment}.sh}
//! /scif/data/NAME/{input,output}
//! ```

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::apptainer::{EMPTY, is_identifier, pretty, quote, quoted};
use super::edit::{AddedContent, Addition, When};
use super::layers::Merged;
use super::tree::{InodeId, Node, Tree};

/// An app to be added to an image. Its name becomes a folder's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct App {
    pub name: String,
    pub help: Option<String>,
    /// Program and first arguments; the caller's are appended. No word of it is seen by a shell.
    pub run: Vec<String>,
    pub env: IndexMap<String, String>,
    pub labels: IndexMap<String, String>,
}

/// Of every app, by its variable's name and its place below the app's folder.
const PLACES: [(&str, &str); 9] = [
    ("APPROOT", ""),
    ("APPBIN", "/bin"),
    ("APPLIB", "/lib"),
    ("APPMETA", "/scif"),
    ("APPENV", "/scif/env/90-environment.sh"),
    ("APPHELP", "/scif/runscript.help"),
    ("APPRUN", "/scif/runscript"),
    ("APPLABELS", "/scif/labels.json"),
    ("APPTEST", "/scif/test"),
];
/// And below its folder for data.
const DATA: [(&str, &str); 3] = [("APPDATA", ""), ("APPINPUT", "/input"), ("APPOUTPUT", "/output")];

impl App {
    pub(super) fn additions(&self) -> Vec<Addition> {
        let name = &self.name;
        let root = format!("scif/apps/{name}");
        let data = format!("scif/data/{name}");
        let folder = |path: String| (path, AddedContent::Folder);
        let script = |path: String, text: String| (path, AddedContent::Executable(text.into()));
        let recipe = format!("%apprun {name}\n    exec{} \"$@\"\n", quoted(&self.run));
        let mut files = vec![
            folder(format!("{root}/bin")),
            folder(format!("{root}/lib")),
            folder(format!("{data}/input")),
            folder(format!("{data}/output")),
            script(format!("{root}/scif/runscript"), self.runscript()),
            script(format!("{root}/scif/env/01-base.sh"), EMPTY.to_owned()),
            script(format!("{root}/scif/env/90-environment.sh"), self.environment()),
            (format!("{root}/scif/labels.json"), AddedContent::File(pretty(&json!(self.labels)))),
            (format!("{root}/scif/Singularity.{name}"), AddedContent::File(recipe.into())),
        ];
        if let Some(help) = &self.help {
            files.push((
                format!("{root}/scif/runscript.help"),
                AddedContent::File(format!("{help}\n").into()),
            ));
        }
        let additions = files.into_iter().map(|(path, content)| Addition {
            path,
            content,
            when: When::Always,
        });
        additions.collect()
    }

    /// What `apptainer inspect --app NAME` shows.
    pub(super) fn inspected(&self) -> Value {
        json!({
            "environment": {format!("/scif/apps/{}/scif/env/90-environment.sh", self.name): self.environment()},
            "labels": self.labels,
            "runscript": self.runscript(),
            "helpfile": self.help.clone().unwrap_or_default(),
        })
    }

    fn runscript(&self) -> String {
        format!("{EMPTY}exec{} \"$@\"\n", quoted(&self.run))
    }

    fn environment(&self) -> String {
        let named = self.env.iter().filter(|(name, _)| is_identifier(name));
        let lines = named.map(|(name, value)| format!("export {name}={}\n", quote(value)));
        [EMPTY.to_owned()].into_iter().chain(lines).collect()
    }
}

/// More of a file of an app is not shown.
const SHOWN: u64 = 64 << 10;

/// The apps that an image came with, and what `apptainer inspect --app NAME` shows of each: its own files, as they are.
pub(super) fn found(merged: &Merged) -> IndexMap<String, Value> {
    let tree = &merged.tree;
    let apps = inner(tree, Tree::ROOT, "scif").and_then(|scif| inner(tree, scif, "apps"));
    let named = apps.into_iter().flat_map(|apps| tree.names(apps));
    let described = named.filter_map(|(name, app)| Some((std::str::from_utf8(name).ok()?, inner(tree, app, "scif")?)));
    described.map(|(name, meta)| (name.to_owned(), shown(merged, name, meta))).collect()
}

fn shown(merged: &Merged, name: &str, meta: InodeId) -> Value {
    let root = format!("/scif/apps/{name}/scif");
    let file = |folder: InodeId, name: &str| inner(&merged.tree, folder, name).and_then(|id| text(merged, id));
    let mut environment = IndexMap::new();
    if let Some(folder) = inner(&merged.tree, meta, "env") {
        let names = merged.tree.names(folder).filter_map(|(name, _)| std::str::from_utf8(name).ok());
        environment.extend(names.filter_map(|name| Some((format!("{root}/env/{name}"), file(folder, name)?))));
    }
    let labels = file(meta, "labels.json").and_then(|text| serde_json::from_str::<IndexMap<String, String>>(&text).ok());
    json!({
        "environment": environment,
        "labels": labels.unwrap_or_default(),
        "runscript": file(meta, "runscript").unwrap_or_default(),
        "test": file(meta, "test").unwrap_or_default(),
        "helpfile": file(meta, "runscript.help").unwrap_or_default(),
    })
}

fn inner(tree: &Tree, folder: InodeId, name: &str) -> Option<InodeId> {
    tree.names(folder).find_map(|(other, id)| (other == name.as_bytes()).then_some(id))
}

/// The text of a small file; what cannot be read is told by whoever writes the image.
fn text(merged: &Merged, id: InodeId) -> Option<String> {
    let Node::File(body) = &merged.tree.inode(id).node else {
        return None;
    };
    let mut bytes = vec![0; usize::try_from(body.size).ok().filter(|_| body.size <= SHOWN)?];
    for part in body.segments() {
        let place = part.at as usize..(part.at + part.length) as usize;
        merged.read_exact_at(body, bytes.get_mut(place)?, part.offset).ok()?;
    }
    String::from_utf8(bytes).ok()
}

/// `94-appsbase.sh`: where every app's things are, whichever is active. In a variable's name `_` stands for what cannot.
pub(super) fn base_script<'a>(apps: impl Iterator<Item = &'a str>) -> String {
    let mut script = format!("{EMPTY}export SCIF_APPS=/scif/apps SCIF_DATA=/scif/data\n");
    for name in apps {
        let suffix: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let mut export = |variable: &str, value: &str| script += &format!("export SCIF_{variable}_{suffix}={}\n", quote(value));
        export("APPNAME", name);
        for (variable, place) in PLACES {
            export(variable, &format!("/scif/apps/{name}{place}"));
        }
        for (variable, place) in DATA {
            export(variable, &format!("/scif/data/{name}{place}"));
        }
    }
    script
}

/// `95-apps.sh`: the active app's variables, its folders on the paths, its environment. Any app is found by its folder, those that
/// the image came with too; the reference tool keeps an app's environment in `scif/environment.sh`.
pub(super) fn active_script() -> String {
    let mut script = format!("{EMPTY}__app=\"${{APPTAINER_APPNAME:-${{SINGULARITY_APPNAME:-}}}}\"\nif [ -n \"$__app\" ]; then\n");
    script +=
        "    if [ ! -d \"/scif/apps/$__app\" ]; then\n        echo \"there is no app $__app in this image\" >&2\n        exit 1\n    fi\n";
    script += "    export SCIF_APPNAME=\"$__app\"\n";
    for (variable, place) in PLACES {
        script += &format!("    export SCIF_{variable}=\"/scif/apps/$__app{place}\"\n");
    }
    for (variable, place) in DATA {
        script += &format!("    export SCIF_{variable}=\"/scif/data/$__app{place}\"\n");
    }
    script += "    export PATH=\"$SCIF_APPBIN:$PATH\"\n";
    script += "    export LD_LIBRARY_PATH=\"$SCIF_APPLIB${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\"\n";
    for file in ["environment.sh", "env/01-base.sh", "env/90-environment.sh"] {
        script += &format!("    if [ -f \"$SCIF_APPMETA/{file}\" ]; then\n        . \"$SCIF_APPMETA/{file}\"\n    fi\n");
    }
    script += "fi\nunset __app\n";
    script
}
