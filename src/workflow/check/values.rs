//! Values of parameters.

use std::collections::HashSet;

use indexmap::IndexMap;
use serde_json::{Number, Value};

use super::super::problem::{Problem, Problems};
use super::super::raw::{self, Kind, Node, Style};
use super::fields::{entries, shown};
use super::names;

/// The `true` and `false` of YAML 1.2: `yes` and `on` are texts.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// A value as it would be read without quotes. A number is only what is written the way numbers are printed: `007`,
/// `1.10` and `1e3` stay the texts that they are, so that they come out of a template as they went in.
pub fn scalar(text: &str) -> Value {
    if matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    if let Some(truth) = boolean(text) {
        return Value::Bool(truth);
    }
    if let Ok(number) = text.parse::<i64>()
        && number.to_string() == text
    {
        return Value::Number(number.into());
    }
    if let Ok(number) = text.parse::<f64>()
        && format!("{number:?}") == text
        && let Some(number) = Number::from_f64(number)
    {
        return Value::Number(number);
    }
    Value::String(text.to_owned())
}

/// The value of a node.
pub fn value(node: &Node) -> Value {
    match &node.kind {
        Kind::Scalar { text, style: Style::Plain } => scalar(text),
        Kind::Scalar { text, .. } => Value::String(text.clone()),
        Kind::List(list) => Value::Array(list.iter().map(value).collect()),
        Kind::Map(map) => Value::Object(map.iter().map(|(key, node)| (key.text.clone(), value(node))).collect()),
    }
}

/// Reads a file of parameters: a map of names to values, for [`check`](super::check)'s overrides.
pub fn params(text: &str) -> Result<IndexMap<String, Value>, Vec<Problem>> {
    let mut problems = Problems::default();
    let values = raw::read(text, &mut problems).map(|root| declared(&root, &mut problems));
    match values {
        Some(values) if problems.is_empty() => Ok(values),
        _ => Err(problems.finish(text)),
    }
}

/// The `params` of a workflow.
pub fn declared(node: &Node, problems: &mut Problems) -> IndexMap<String, Value> {
    let mut values = IndexMap::new();
    for (key, node) in entries(node, "`params`", problems).unwrap_or_default() {
        names::check(key, "a parameter", problems);
        if let Some(place) = expression(node) {
            problems.add(
                place,
                format!(
                    "parameter `{}` is a plain value: `${{{{ }}}}` means nothing in it",
                    shown(&key.text)
                ),
            );
        }
        values.insert(key.text.clone(), value(node));
    }
    values
}

/// The first scalar in a node that looks like a template.
fn expression(node: &Node) -> Option<std::ops::Range<usize>> {
    match &node.kind {
        Kind::Scalar { text, .. } => text.contains("${{").then(|| node.span.clone()),
        Kind::List(list) => list.iter().find_map(expression),
        Kind::Map(map) => map.iter().find_map(|(_, node)| expression(node)),
    }
}

/// `--set` and `--params` over what the file says.
pub fn overridden(
    mut declared: IndexMap<String, Value>,
    overrides: &IndexMap<String, Value>,
    problems: &mut Problems,
) -> IndexMap<String, Value> {
    let known: HashSet<String> = declared.keys().cloned().collect();
    for (name, value) in overrides {
        if known.contains(name) {
            declared.insert(name.clone(), value.clone());
        } else {
            problems.hint(
                super::super::problem::Place::Outside,
                format!("the workflow has no parameter `{}`", shown(name)),
                super::super::problem::suggest(name, declared.keys().map(String::as_str)),
            );
        }
    }
    declared
}
