//! Reading maps, lists and scalars of the tree, each mistake with its place.

use std::ops::Range;
use std::str::FromStr;

use super::super::problem::{Problems, suggest};
use super::super::raw::{Key, Kind, Node};

/// A map whose keys are all known.
pub struct Fields<'n> {
    entries: &'n [(Key, Node)],
}

impl<'n> Fields<'n> {
    /// Reads a map and reports keys that are not in `known`; `what` is it, with its article, for messages.
    pub fn read(node: &'n Node, what: &str, known: &[&str], problems: &mut Problems) -> Option<Fields<'n>> {
        let entries = entries(node, what, problems)?;
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) && !problems.is_full() {
                problems.hint(
                    key.span.clone(),
                    format!("unknown key `{}` in {what}", shown(&key.text)),
                    suggest(&key.text, known.iter().copied()),
                );
            }
        }
        Some(Fields { entries })
    }

    /// The value of a key; one that is there without a value counts as absent.
    pub fn get(&self, name: &str) -> Option<&'n Node> {
        self.pair(name).map(|(_, node)| node).filter(|node| !node.is_null())
    }

    /// The place of a key.
    pub fn key(&self, name: &str) -> Option<Range<usize>> {
        self.pair(name).map(|(key, _)| key.span.clone())
    }

    fn pair(&self, name: &str) -> Option<&'n (Key, Node)> {
        self.entries.iter().find(|(key, _)| key.text == name)
    }
}

/// The entries of a map whose keys are the user's.
pub fn entries<'n>(node: &'n Node, what: &str, problems: &mut Problems) -> Option<&'n [(Key, Node)]> {
    match &node.kind {
        Kind::Map(entries) => Some(entries),
        _ => {
            problems.add(node.span.clone(), format!("{what} is a map (`key: value`), not {}", node.what()));
            None
        }
    }
}

/// The entries of a list.
pub fn list<'n>(node: &'n Node, what: &str, example: &str, problems: &mut Problems) -> &'n [Node] {
    match &node.kind {
        Kind::List(entries) => entries,
        _ => {
            problems.hint(
                node.span.clone(),
                format!("{what} is a list, not {}", node.what()),
                format!("write `{example}`"),
            );
            &[]
        }
    }
}

/// A scalar as it was written.
pub fn text<'n>(node: &'n Node, what: &str, example: &str, problems: &mut Problems) -> Option<&'n str> {
    match &node.kind {
        Kind::Scalar { text, .. } if !node.is_null() => Some(text),
        _ => {
            problems.hint(
                node.span.clone(),
                format!("{what} is a text, not {}", node.what()),
                format!("for example `{example}`"),
            );
            None
        }
    }
}

/// `true` or `false`, as YAML 1.2 has it.
pub fn boolean(node: &Node, what: &str, problems: &mut Problems) -> Option<bool> {
    let value = match &node.kind {
        Kind::Scalar { text, .. } => super::values::boolean(text),
        _ => None,
    };
    if value.is_none() {
        problems.add(node.span.clone(), format!("{what} is `true` or `false`, not {}", described(node)));
    }
    value
}

/// A whole number in `range`.
pub fn whole<T>(node: &Node, text: &str, what: &str, range: std::ops::RangeInclusive<T>, problems: &mut Problems) -> Option<T>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    match text.trim().parse::<T>() {
        Ok(value) if range.contains(&value) => Some(value),
        _ => {
            problems.add(
                node.span.clone(),
                format!(
                    "{what} is a whole number from {} to {}, not `{}`",
                    range.start(),
                    range.end(),
                    shown(text)
                ),
            );
            None
        }
    }
}

/// A node in a message: a short scalar itself, else its kind.
pub fn described(node: &Node) -> String {
    match &node.kind {
        Kind::Scalar { text, .. } if !node.is_null() => format!("`{}`", shown(text)),
        _ => node.what().to_owned(),
    }
}

/// Nothing of a file makes a message longer than a line.
pub fn shown(text: &str) -> String {
    let line: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() < text.len() { format!("{line}…") } else { line }
}
