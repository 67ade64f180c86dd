//! What the expressions of a template may name.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, ObjectExt, Value};

use super::problem::suggest;
use super::{Array, Resources};

/// The names of one place: built once a task, used for all its templates.
#[derive(Debug)]
pub(crate) struct Scope {
    root: Value,
    misses: Misses,
}

type Misses = Arc<Mutex<Vec<Miss>>>;

/// A name that was asked for and is not there.
#[derive(Clone, Debug)]
pub(crate) struct Miss {
    /// Dotted; empty for the outermost names.
    group: String,
    pub key: String,
    known: Vec<String>,
}

impl Miss {
    pub fn message(&self) -> String {
        match self.group.as_str() {
            "" => format!("unknown name `{}`", self.key),
            group => format!("`{group}` has no `{}`", self.key),
        }
    }

    pub fn hint(&self) -> Option<String> {
        suggest(&self.key, self.known.iter().map(String::as_str))
    }
}

/// A group of names; `text` is what it is itself, when it is something (a data set is a folder).
#[derive(Debug)]
struct Group {
    path: String,
    text: Option<String>,
    entries: IndexMap<String, Value>,
    misses: Misses,
}

impl Object for Group {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str()?;
        let found = self.entries.get(name).cloned();
        if found.is_none() {
            self.misses.lock().unwrap_or_else(PoisonError::into_inner).push(Miss {
                group: self.path.clone(),
                key: name.to_owned(),
                known: self.entries.keys().take(200).cloned().collect(),
            });
        }
        found
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|group| Box::new(group.entries.keys().map(|key| Value::from(key.as_str()))))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.as_deref().unwrap_or(&self.path))
    }
}

/// Whether a value is names without being anything itself.
pub(super) fn is_group(value: &Value) -> bool {
    value.downcast_object_ref::<Group>().is_some_and(|group| group.text.is_none())
}

impl Scope {
    /// Starts with no names.
    pub fn builder() -> ScopeBuilder {
        ScopeBuilder {
            entries: IndexMap::new(),
            misses: Misses::default(),
        }
    }

    pub(super) fn value(&self) -> Value {
        self.root.clone()
    }

    pub(super) fn take_misses(&self) -> Vec<Miss> {
        std::mem::take(&mut *self.misses.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Adds group after group. A clone shares what is there: what many places have in common is made once.
#[derive(Clone)]
pub(crate) struct ScopeBuilder {
    entries: IndexMap<String, Value>,
    misses: Misses,
}

impl ScopeBuilder {
    pub fn params(self, params: &IndexMap<String, serde_json::Value>) -> Self {
        let entries = params.iter().map(|(name, value)| (name.clone(), Value::from_serialize(value)));
        self.add("params", entries.collect())
    }

    /// Each data set: its name, its path, its files' names.
    pub fn data<'a>(self, sets: impl IntoIterator<Item = (&'a str, String, Vec<&'a str>)>) -> Self {
        let sets = sets.into_iter().map(|(name, path, files)| {
            let files = files
                .into_iter()
                .map(|file| (file.to_owned(), Value::from(format!("{path}/{file}"))));
            let group = Group {
                path: format!("data.{name}"),
                entries: files.collect(),
                text: Some(path.clone()),
                misses: self.misses.clone(),
            };
            (name.to_owned(), Value::from_object(group))
        });
        let sets = sets.collect();
        self.add("data", sets)
    }

    /// Each image: its name and its digest.
    pub fn images<'a>(self, images: impl IntoIterator<Item = (&'a str, Option<String>)>) -> Self {
        let images = images.into_iter().map(|(name, digest)| {
            let group = Group {
                path: format!("images.{name}"),
                entries: IndexMap::from_iter([("digest".to_owned(), digest.map_or(Value::UNDEFINED, Value::from))]),
                text: None,
                misses: self.misses.clone(),
            };
            (name.to_owned(), Value::from_object(group))
        });
        let images = images.collect();
        self.add("images", images)
    }

    pub fn stage(self, name: &str, resources: &Resources) -> Self {
        let memory = resources.memory.map(|memory| memory.mebibytes());
        self.add("stage", IndexMap::from_iter([("name".to_owned(), Value::from(name))]))
            .add(
                "resources",
                [
                    Some(("cpus", Value::from(resources.cpus))),
                    Some(("gpus", Value::from(resources.gpus))),
                    memory.map(|memory| ("memory_mb", Value::from(memory))),
                ]
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            )
    }

    /// The task `index` of an array.
    pub fn array(self, array: &Array, index: u32) -> Self {
        let value = usize::try_from(index).ok().and_then(|at| array.values.get(at));
        let mut entries = IndexMap::from_iter([
            ("index".to_owned(), Value::from(index)),
            ("count".to_owned(), Value::from(array.count)),
        ]);
        if let Some(value) = value {
            entries.insert("value".to_owned(), row("array.value", value, &self.misses));
        }
        self.add("array", entries)
    }

    pub fn run(self, dir: &str) -> Self {
        self.add("run", IndexMap::from_iter([("dir".to_owned(), Value::from(dir))]))
    }

    fn add(mut self, name: &str, entries: IndexMap<String, Value>) -> Self {
        let group = Group {
            path: name.to_owned(),
            text: None,
            entries,
            misses: self.misses.clone(),
        };
        self.entries.insert(name.to_owned(), Value::from_object(group));
        self
    }

    pub fn build(self) -> Scope {
        let root = Group {
            path: String::new(),
            text: None,
            entries: self.entries,
            misses: self.misses.clone(),
        };
        Scope {
            root: Value::from_object(root),
            misses: self.misses,
        }
    }
}

/// A row of columns reports a missing column; any other value is itself.
fn row(path: &str, value: &serde_json::Value, misses: &Misses) -> Value {
    match value {
        serde_json::Value::Object(columns) => Value::from_object(Group {
            path: path.to_owned(),
            text: None,
            entries: columns
                .iter()
                .map(|(name, value)| (name.clone(), Value::from_serialize(value)))
                .collect(),
            misses: misses.clone(),
        }),
        other => Value::from_serialize(other),
    }
}
