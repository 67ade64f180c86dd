//! YAML 1.2 as a tree in which every node knows its place and every scalar is still as it was written.
//!
//! Nothing is decided about types here: `2:00:00`, `007` and `1.0` stay texts until a reader wants a number.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::problem::Problems;

/// Nothing that people write comes near these.
const MAX_TEXT: usize = 4 << 20;
const MAX_NODES: usize = 400_000;
const MAX_DEPTH: usize = 48;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub kind: Kind,
    /// Bytes of the text: of the value itself for a scalar, of the first character for the rest.
    pub span: Range<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Scalar {
        text: String,
        style: Style,
    },
    List(Vec<Node>),
    /// In the file's order; keys are distinct.
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Quoted,
    Literal,
    Folded,
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub text: String,
    pub span: Range<usize>,
}

impl Node {
    /// The empty value, `~` and `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, style: Style::Plain } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is, for messages.
    pub fn what(&self) -> &'static str {
        match &self.kind {
            _ if self.is_null() => "nothing",
            Kind::Scalar { style: Style::Plain, text } if text.parse::<f64>().is_ok() => "a number",
            Kind::Scalar { .. } => "a text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }

    /// Where the bytes `part` of a scalar's value lie in the file: exact when the value stands in the file as it
    /// is (no escapes, no folding), else the whole scalar.
    pub fn place(&self, file: &str, part: Range<usize>) -> Range<usize> {
        self.locate(file, part).unwrap_or_else(|| self.span.clone())
    }

    fn locate(&self, file: &str, part: Range<usize>) -> Option<Range<usize>> {
        let Kind::Scalar { text, style } = &self.kind else { return None };
        let source = file.get(self.span.clone())?;
        if *style != Style::Literal {
            let offset = match style {
                Style::Quoted => 1,
                _ => 0,
            };
            let same = source.get(offset..offset + text.len())? == text;
            return same.then(|| self.span.start + offset + part.start..self.span.start + offset + part.end);
        }
        // A literal block is its lines without their indentation: walk both.
        let number = text.get(..part.start)?.matches('\n').count();
        let start_in_line = part.start - text[..part.start].rfind('\n').map_or(0, |at| at + 1);
        let line = text.split('\n').nth(number)?;
        let mut at = self.span.start;
        if source.starts_with('|') {
            at += source.find('\n')? + 1;
        } else {
            at = file[..at].rfind('\n').map_or(0, |newline| newline + 1);
        }
        for _ in 0..number {
            at += file.get(at..)?.find('\n')? + 1;
        }
        let written = file.get(at..)?.split('\n').next()?.trim_end_matches('\r');
        let indent = written.len().checked_sub(line.len())?;
        let same = written.get(indent..)? == line && written[..indent].bytes().all(|b| b == b' ');
        let start = at + indent + start_in_line;
        let length = part.len().min(line.len() - start_in_line.min(line.len()));
        same.then(|| start..start + length)
    }
}

/// Reads one document. `None` when it cannot be read at all; what is wrong is in `problems`.
pub(super) fn read(text: &str, problems: &mut Problems) -> Option<Node> {
    if text.len() > MAX_TEXT {
        problems.add(0..0, format!("the file is larger than {} MiB", MAX_TEXT >> 20));
        return None;
    }
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut tree = Tree {
        problems,
        anchors: HashMap::new(),
        nodes: 0,
        open: Vec::new(),
        root: None,
    };
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match next {
            Ok(next) => next,
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or(0);
                tree.problems.add(at..at, format!("this is not YAML: {}", error.info()));
                return None;
            }
        };
        let range = span.byte_range().unwrap_or(0..0);
        if !tree.event(event, &span, range) {
            return None;
        }
    }
    match tree.root {
        Some(root) => Some(root),
        None => {
            tree.problems.add(0..0, "the file is empty");
            None
        }
    }
}

/// A collection whose end has not come yet.
struct Open {
    node: Node,
    anchor: usize,
    /// Of a map: the key that waits for its value, and all that were there.
    key: Option<Key>,
    seen: HashSet<String>,
}

struct Tree<'p> {
    problems: &'p mut Problems,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    open: Vec<Open>,
    root: Option<Node>,
}

impl Tree<'_> {
    /// False when reading cannot go on.
    fn event(&mut self, event: Event<'_>, span: &Span, range: Range<usize>) -> bool {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tagged = self.tag(tag.as_ref(), span);
                let style = match style {
                    ScalarStyle::Plain if tagged => Style::Quoted,
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal => Style::Literal,
                    ScalarStyle::Folded => Style::Folded,
                };
                let kind = Kind::Scalar {
                    text: text.into_owned(),
                    style,
                };
                self.add(Node { kind, span: range }, anchor, 1)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_ref(), span);
                self.start(Kind::List(Vec::new()), range, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_ref(), span);
                self.start(Kind::Map(Vec::new()), range, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return false };
                self.add(open.node, open.anchor, 1)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some((node, size)) => {
                    let (node, size) = (node.clone(), *size);
                    self.add(node, 0, size)
                }
                None => {
                    self.problems.add(range, "this alias stands inside what it names");
                    false
                }
            },
            Event::DocumentStart(..) if self.root.is_some() => {
                self.problems.add(range, "a second document: a workflow is one");
                false
            }
            _ => true,
        }
    }

    /// Whether the tag makes a text of a plain scalar.
    fn tag(&mut self, tag: Option<&Cow<'_, Tag>>, span: &Span) -> bool {
        let Some(tag) = tag else { return false };
        if !tag.is_yaml_core_schema() {
            let at = span
                .tag_span()
                .and_then(|tag| tag.byte_range())
                .or(span.byte_range())
                .unwrap_or(0..0);
            self.problems.add(at, "tags have no meaning here");
        }
        tag.is_yaml_core_schema_tag("str")
    }

    fn start(&mut self, kind: Kind, range: Range<usize>, anchor: usize) -> bool {
        let node = Node {
            kind,
            span: range.start..range.start + 1,
        };
        if self.open.len() >= MAX_DEPTH {
            self.problems.add(node.span, format!("nested deeper than {MAX_DEPTH}"));
            return false;
        }
        self.open.push(Open {
            node,
            anchor,
            key: None,
            seen: HashSet::new(),
        });
        true
    }

    /// Puts a whole node where it belongs; `size` nodes are in it.
    fn add(&mut self, node: Node, anchor: usize, size: usize) -> bool {
        self.nodes += size;
        if self.nodes > MAX_NODES {
            self.problems
                .add(node.span, format!("more than {MAX_NODES} values (aliases count as what they name)"));
            return false;
        }
        if anchor != 0 {
            let size = count(&node);
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return true;
        };
        match (&mut open.node.kind, open.key.take()) {
            (Kind::List(list), _) => list.push(node),
            (Kind::Map(map), Some(key)) => {
                if open.seen.insert(key.text.clone()) {
                    map.push((key, node));
                } else {
                    self.problems.add(key.span, format!("`{}` stands here twice", key.text));
                }
            }
            (Kind::Map(_), None) => match node.kind {
                Kind::Scalar { text, .. } => open.key = Some(Key { text, span: node.span }),
                _ => {
                    self.problems.add(node.span, "a key must be a text");
                    return false;
                }
            },
            (Kind::Scalar { .. }, _) => return false,
        }
        true
    }
}

fn count(node: &Node) -> usize {
    match &node.kind {
        Kind::Scalar { .. } => 1,
        Kind::List(list) => 1 + list.iter().map(count).sum::<usize>(),
        Kind::Map(map) => 1 + map.iter().map(|(_, value)| 1 + count(value)).sum::<usize>(),
    }
}
