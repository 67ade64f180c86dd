//! Whether what a template names is there.

use indexmap::IndexMap;
use serde_json::Value;

use super::super::problem::{Problems, nearest, suggest};
use super::super::raw::Node;
use super::super::scope::Scope;
use super::super::template::{self, Piece, TemplateError};
use super::super::{DataSet, DataSource};

/// What is declared in the file.
pub struct Declared<'a> {
    pub params: &'a IndexMap<String, Value>,
    pub data: &'a IndexMap<String, DataSet>,
    pub images: &'a [String],
}

/// What a template may speak of, beside the parameters.
#[derive(Clone, Copy)]
pub struct Reach<'s> {
    pub groups: &'static [&'static str],
    pub array: bool,
    pub memory: bool,
    /// Tasks for which it must come out as a text.
    pub samples: &'s [Scope],
}

impl Reach<'_> {
    /// Known before anything else: parameters alone.
    pub const PARAMS: Reach<'static> = Reach {
        groups: &["params"],
        array: false,
        memory: false,
        samples: &[],
    };

    /// A task of whatever kind, and the folder of its run.
    pub const TASK: Reach<'static> = Reach {
        groups: &["params", "data", "images", "stage", "array", "run", "resources"],
        array: true,
        memory: true,
        samples: &[],
    };

    /// The same without the run: what it leaves behind is looked for by the next one.
    pub fn lasting(self) -> Self {
        Reach {
            groups: &["params", "data", "images", "stage", "array", "resources"],
            ..self
        }
    }
}

/// Reports every name in a template that means nothing; true when all is well.
pub fn check(node: &Node, text: &str, file: &str, reach: Reach<'_>, declared: &Declared<'_>, problems: &mut Problems) -> bool {
    if !text.contains("${{") {
        return true;
    }
    if problems.is_full() {
        return false;
    }
    let mut well = true;
    let mut report = |error: TemplateError, from: usize| {
        well = false;
        if problems.is_full() {
            return;
        }
        let place = node.place(file, error.at.start + from..error.at.end + from);
        problems.hint(place, error.message, error.hint);
    };
    let pieces = match template::pieces(text) {
        Ok(pieces) => pieces,
        Err(error) => {
            report(error, 0);
            return false;
        }
    };
    for piece in pieces {
        let Piece::Expression { whole, .. } = piece else { continue };
        let expression = &text[whole.clone()];
        match mistakes(expression, reach, declared) {
            Ok(mistakes) if mistakes.is_empty() => {
                // Names may be computed, and filters refuse: what is left is seen by trying.
                if let Some(error) = reach.samples.iter().find_map(|scope| template::render(expression, scope).err()) {
                    report(error, whole.start);
                }
            }
            Ok(mistakes) => mistakes.into_iter().for_each(|error| report(error, whole.start)),
            Err(error) => report(error, whole.start),
        }
    }
    well
}

/// Names in one expression that mean nothing; or why it is none.
fn mistakes(expression: &str, reach: Reach<'_>, declared: &Declared<'_>) -> Result<Vec<TemplateError>, TemplateError> {
    let names = template::names(expression)?;
    let unknown = names.into_iter().filter_map(|name| {
        let (message, hint) = known(&name.path, reach, declared).err()?;
        Some(TemplateError {
            at: name.at,
            message,
            hint,
        })
    });
    Ok(unknown.collect())
}

/// Expands a text that may only speak of parameters.
pub fn expand(node: &Node, text: &str, file: &str, declared: &Declared<'_>, problems: &mut Problems) -> Option<String> {
    if !text.contains("${{") {
        return Some(text.to_owned());
    }
    if !check(node, text, file, Reach::PARAMS, declared, problems) {
        return None;
    }
    let scope = Scope::builder().params(declared.params).build();
    match template::render(text, &scope) {
        Ok(text) => Some(text),
        Err(error) => {
            problems.hint(node.place(file, error.at), error.message, error.hint);
            None
        }
    }
}

/// A scalar that may speak of parameters, expanded.
pub fn text(node: &Node, what: &str, example: &str, file: &str, declared: &Declared<'_>, problems: &mut Problems) -> Option<String> {
    let text = super::fields::text(node, what, example, problems)?;
    expand(node, text, file, declared, problems)
}

type Unknown = (String, Option<String>);

fn known(path: &str, reach: Reach<'_>, declared: &Declared<'_>) -> Result<(), Unknown> {
    let mut parts = path.splitn(3, '.');
    let root = parts.next().unwrap_or_default();
    let (second, third) = (parts.next(), parts.next());
    let Reach { groups, array, memory, .. } = reach;
    if !groups.contains(&root) {
        return Err(match root {
            "data" | "images" | "stage" | "array" | "run" | "resources" => (
                format!("`{root}` means nothing here"),
                Some(format!("here are: {}", groups.join(", "))),
            ),
            _ if declared.params.contains_key(root) => (format!("unknown name `{root}`"), Some(format!("did you mean `params.{root}`?"))),
            _ => (format!("unknown name `{root}`"), suggest(root, groups.iter().copied())),
        });
    }
    if root == "array" && !array {
        return Err((format!("`{path}` means nothing in a stage without an `array`"), None));
    }
    let Some(second) = second else { return Ok(()) };
    let in_group = |known: &[&str]| -> Result<(), Unknown> {
        if known.contains(&second) {
            return Ok(());
        }
        Err((format!("`{root}` has no `{second}`"), suggest(second, known.iter().copied())))
    };
    match root {
        "params" if declared.params.contains_key(second) => Ok(()),
        "params" => Err((
            format!("unknown parameter `{second}`"),
            suggest(second, declared.params.keys().map(String::as_str)),
        )),
        "data" => match (declared.data.get(second), third) {
            (None, _) => Err((
                format!("unknown data set `{second}`"),
                suggest(second, declared.data.keys().map(String::as_str)),
            )),
            (Some(set), Some(file)) => in_data(second, set, file),
            (Some(_), None) => Ok(()),
        },
        "images" if !declared.images.iter().any(|image| image == second) => Err((
            format!("unknown image `{second}`"),
            suggest(second, declared.images.iter().map(String::as_str)),
        )),
        "images" => match third {
            None | Some("digest") => Ok(()),
            Some(other) => Err((format!("an image has no `{other}`"), Some("known: digest".into()))),
        },
        "stage" => in_group(&["name"]),
        "array" => in_group(&["index", "count", "value"]),
        "run" => in_group(&["dir"]),
        "resources" if second == "memory_mb" && !memory => Err((
            "`resources.memory_mb` means nothing in a stage without `resources: {memory: …}`".into(),
            None,
        )),
        "resources" => in_group(&["cpus", "memory_mb", "gpus"]),
        _ => Ok(()),
    }
}

fn in_data(name: &str, set: &DataSet, file: &str) -> Result<(), Unknown> {
    let DataSource::Files(files) = &set.source else {
        return Err((
            format!("the files of data set `{name}` are not known beforehand"),
            Some(format!("write `${{{{ data.{name} }}}}/{file}`")),
        ));
    };
    let there = files.iter().any(|known| known.name == file);
    if there && !file.contains('.') {
        return Ok(());
    }
    // A dot ends a name: `data.input.x.bam` would be a file `x` with a property `bam`.
    if there {
        return Err((
            format!("`data.{name}.{file}`: a name with dots needs brackets"),
            Some(format!("write `data.{name}['{file}']`")),
        ));
    }
    let hint = nearest(file, files.iter().map(|known| known.name.as_str())).map(|near| format!("did you mean `data.{name}['{near}']`?"));
    Err((format!("data set `{name}` has no file `{file}`"), hint))
}
