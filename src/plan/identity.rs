//! What makes a stage the stage that it is: what it runs and on what, not how much of the machine it gets.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use serde_json::{Value, json};

use crate::lock::Lock;
use crate::oci::Digest;
use crate::workflow::template;
use crate::workflow::{Command, Stage, StageName, StageUser, Template};

/// The change rule of identities: another number makes everything run again.
const VERSION: u32 = 1;

/// What a stage's templates name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uses {
    params: Named,
    data: Named,
    images: Named,
    stage: bool,
}

/// Some names of a group, or the group itself (`params[x]`), which is all of them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    all: bool,
    names: BTreeSet<String>,
}

impl Named {
    fn pick<'a, T>(&self, from: &'a IndexMap<String, T>) -> impl Iterator<Item = (&'a String, &'a T)> {
        from.iter().filter(|(name, _)| self.all || self.names.contains(*name))
    }
}

impl Uses {
    fn of<'a>(templates: impl IntoIterator<Item = &'a Template>) -> Uses {
        let mut uses = Uses::default();
        for template in templates {
            // A checked template has no error; one that has none uses nothing.
            for name in template::names(&template.0).unwrap_or_default() {
                let mut parts = name.path.splitn(3, '.');
                let group = match parts.next() {
                    Some("params") => &mut uses.params,
                    Some("data") => &mut uses.data,
                    Some("images") => &mut uses.images,
                    Some("stage") => {
                        uses.stage = true;
                        continue;
                    }
                    _ => continue,
                };
                match parts.next() {
                    Some(name) => {
                        group.names.insert(name.to_owned());
                    }
                    None => group.all = true,
                }
            }
        }
        uses
    }

    /// The data sets that a stage names anywhere.
    pub fn data_of<'a, T>(stage: &Stage, from: &'a IndexMap<String, T>) -> Vec<(&'a String, &'a T)> {
        let sources = stage.binds.iter().map(|bind| &bind.source);
        Uses::of(content(stage).chain(sources)).data.pick(from).collect()
    }
}

/// The templates that a stage's results depend on: not where its folders lie on this host.
fn content(stage: &Stage) -> impl Iterator<Item = &Template> {
    let command: Vec<&Template> = match &stage.command {
        Command::App { args, .. } | Command::Entrypoint { args } | Command::Argv(args) => args.iter().collect(),
        Command::Script(script) => vec![script],
    };
    command
        .into_iter()
        .chain(stage.env.values())
        .chain(stage.binds.iter().map(|bind| &bind.target))
        .chain(&stage.outputs)
        .chain(&stage.workdir)
}

/// The identity of a stage whose needs have the identities `parents`.
///
/// A hash over the image's digest (its source where that is not known), the command, the environment, the binds'
/// targets, the outputs, the working directory, the array, the values of the parameters that these name, the data sets
/// that the stage names, and `parents`. Resources, retries, options of SLURM and the number of tasks at once are not in it.
pub fn identity(stage: &Stage, params: &IndexMap<String, Value>, lock: &Lock, parents: &[(&StageName, &Digest)]) -> (Digest, Parts) {
    let uses = Uses::of(content(stage));
    let image = stage.image.as_ref().map(|name| match lock.images.get(name) {
        Some(image) => image.digest.as_ref().map_or_else(|| image.source.clone(), Digest::to_string),
        None => name.clone(),
    });
    let params: BTreeMap<&String, Value> = uses.params.pick(params).map(|(name, value)| (name, sorted(value))).collect();
    let data: BTreeMap<&String, &Digest> = Uses::data_of(stage, &lock.data)
        .into_iter()
        .map(|(name, data)| (name, &data.identity))
        .collect();
    let images: BTreeMap<&String, &Option<Digest>> = uses.images.pick(&lock.images).map(|(name, image)| (name, &image.digest)).collect();
    let env: BTreeMap<&String, &Template> = stage.env.iter().collect();
    let targets: BTreeSet<&str> = stage.binds.iter().map(|bind| bind.target.0.as_str()).collect();
    let parts = |content: &Value| {
        let mut parts = self::parts(content);
        parts.extend(
            parents
                .iter()
                .map(|(name, digest)| (format!("needs.{name}"), short(&digest.to_string()))),
        );
        parts
    };
    let mut digests: Vec<String> = parents.iter().map(|(_, digest)| digest.to_string()).collect();
    digests.sort();
    let mut content = json!({
        "identity": VERSION,
        "image": image,
        "command": stage.command,
        "env": env,
        "binds": targets,
        "outputs": stage.outputs,
        "workdir": stage.workdir,
        "array": stage.array.as_ref().map(|array| json!({
            "count": array.count,
            "values": array.values.iter().map(sorted).collect::<Vec<_>>(),
        })),
        "params": params,
        "data": data,
        "images": images,
        "stage": uses.stage.then_some(&stage.name),
        "parents": digests,
    });
    if stage.user != StageUser::Caller {
        content["user"] = json!(stage.user);
    }
    (Digest::sha256(content.to_string().as_bytes()), parts(&content))
}

/// What an identity is made of, to tell later which part of it changed: `params.region` → its value where that is short,
/// else a hash of it.
pub type Parts = BTreeMap<String, String>;

fn parts(content: &Value) -> Parts {
    let mut parts = Parts::new();
    let fields = content.as_object().into_iter().flatten();
    for (field, value) in fields.filter(|(field, _)| !matches!(field.as_str(), "identity" | "parents" | "stage")) {
        match value {
            Value::Object(map) if matches!(field.as_str(), "params" | "data" | "images" | "env") => {
                // A value of the environment may be a secret.
                let part = |value: &Value| {
                    if field == "env" {
                        hash(&value.to_string())
                    } else {
                        short(&value.to_string())
                    }
                };
                parts.extend(map.iter().map(|(name, value)| (format!("{field}.{name}"), part(value))));
            }
            Value::Null => {}
            Value::Array(list) if list.is_empty() => {}
            value => {
                parts.insert(field.clone(), short(&value.to_string()));
            }
        }
    }
    parts
}

fn short(text: &str) -> String {
    const READABLE: usize = 60;
    match text.len() {
        ..=READABLE => text.to_owned(),
        _ => hash(text),
    }
}

fn hash(text: &str) -> String {
    Digest::sha256(text.as_bytes()).to_string().chars().take(19).collect()
}

/// Maps in one order, whatever order they were written in.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<&String, Value> = map.iter().map(|(key, value)| (key, sorted(value))).collect();
            json!(ordered)
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}
