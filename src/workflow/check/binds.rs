//! `binds`: `source:target[:ro|rw]`, or a map of the same.

use super::super::paths;
use super::super::problem::Problems;
use super::super::raw::{Kind, Node};
use super::super::template::{self, Piece};
use super::super::{Bind, BindMode, DataSource, Template};
use super::fields::{self, Fields, boolean, shown};
use super::stage::Around;
use super::templates::{self, Reach};

const EXAMPLE: &str = "./work:/work:rw";

/// Reads one bind. Without a mode a data set is read-only, everything else writable.
pub fn bind(node: &Node, around: &Around<'_>, reach: Reach<'_>, problems: &mut Problems) -> Option<Bind> {
    let (source, target, mode, optional, well) = match &node.kind {
        Kind::Map(_) => {
            let fields = Fields::read(node, "a bind", &["source", "target", "mode", "optional"], problems)?;
            let Some(source) = fields.get("source") else {
                problems.hint(
                    node.span.clone(),
                    "this bind has no `source`",
                    "write `{source: ./work, target: /work}`".to_owned(),
                );
                return None;
            };
            let mut read = |node: &Node| {
                let text = fields::text(node, "a path", "./work", problems)?;
                templates::check(node, text, around.text, reach, &around.declared, problems).then(|| text.to_owned())
            };
            let target = fields.get("target").map(&mut read);
            let source = read(source)?;
            let target = match target {
                Some(target) => Some(target?),
                None => None,
            };
            let mode = match fields.get("mode") {
                Some(node) => Some(mode(node, fields::text(node, "`mode`", "ro", problems)?, problems)?),
                None => None,
            };
            let optional = fields.get("optional").and_then(|node| boolean(node, "`optional`", problems));
            (source, target, mode, optional.unwrap_or(false), true)
        }
        _ => {
            let text = fields::text(node, "a bind", EXAMPLE, problems)?;
            let well = templates::check(node, text, around.text, reach, &around.declared, problems);
            let parts = split(text)?;
            match parts.as_slice() {
                [source] => (source.clone(), None, None, false, well),
                [source, target] => (source.clone(), Some(target.clone()), None, false, well),
                [source, target, word] => (source.clone(), Some(target.clone()), Some(mode(node, word, problems)?), false, well),
                _ => {
                    problems.hint(
                        node.span.clone(),
                        format!("`{}` is not a bind", shown(text)),
                        format!("write `{EXAMPLE}`, or `{{source: …, target: …}}` for a path with a colon"),
                    );
                    return None;
                }
            }
        }
    };
    if !well {
        return None;
    }
    let target = target.unwrap_or_else(|| match source.starts_with('/') || source.starts_with("${{") {
        true => source.clone(),
        false => paths::absolute(around.dir, &source).display().to_string(),
    });
    let sets = data_in(&source);
    for set in &sets {
        let stored = around
            .declared
            .data
            .get(set)
            .is_some_and(|set| !matches!(set.source, DataSource::Path(_)));
        if mode == Some(BindMode::ReadWrite) && stored {
            problems.hint(
                node.span.clone(),
                format!("data set `{set}` is in the store, which is read-only"),
                "copy it to a folder of the workflow to change it".to_owned(),
            );
        }
    }
    if source.is_empty() || target.is_empty() {
        problems.hint(node.span.clone(), "a bind has a source and a target", format!("write `{EXAMPLE}`"));
        return None;
    }
    if source.starts_with('~') {
        problems.hint(
            node.span.clone(),
            "`~` is not expanded: a workflow is the same for everyone",
            "write a parameter, and set it to the path".to_owned(),
        );
    } else if !source.starts_with('/') && paths::leaves(&source) {
        problems.hint(
            node.span.clone(),
            format!("bind source `{}` leaves the workflow's folder", shown(&source)),
            "write an absolute path, or a parameter that holds one".to_owned(),
        );
    }
    Some(Bind {
        source: Template(source),
        target: Template(target),
        mode: mode.unwrap_or(match sets.is_empty() {
            true => BindMode::ReadWrite,
            false => BindMode::ReadOnly,
        }),
        optional,
    })
}

fn mode(node: &Node, word: &str, problems: &mut Problems) -> Option<BindMode> {
    match word {
        "ro" => Some(BindMode::ReadOnly),
        "rw" => Some(BindMode::ReadWrite),
        _ => {
            problems.add(
                node.span.clone(),
                format!("the mode of a bind is `ro` or `rw`, not `{}`", shown(word)),
            );
            None
        }
    }
}

/// At the colons outside expressions; `None` when the template is broken, which is reported elsewhere.
fn split(text: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    for piece in template::pieces(text).ok()? {
        match piece {
            Piece::Text(text) => {
                for (number, part) in text.split(':').enumerate() {
                    if number > 0 {
                        parts.push(String::new());
                    }
                    parts.last_mut()?.push_str(part);
                }
            }
            Piece::Expression { whole, .. } => parts.last_mut()?.push_str(&text[whole]),
        }
    }
    Some(parts)
}

/// The data sets that a template names.
fn data_in(text: &str) -> Vec<String> {
    let names = template::names(text).unwrap_or_default();
    names
        .iter()
        .filter_map(|name| name.path.strip_prefix("data."))
        .map(|rest| rest.split('.').next().unwrap_or(rest).to_owned())
        .collect()
}
