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

/// `94-appsbase.sh`: where every app's things are, whichever is active. In a variable's name `_` stands for what cannot.
pub(super) fn base_script(apps: &[App]) -> String {
    let mut script = format!("{EMPTY}export SCIF_APPS=/scif/apps SCIF_DATA=/scif/data\n");
    for App { name, .. } in apps {
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
