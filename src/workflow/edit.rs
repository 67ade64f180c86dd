//! Values changed in the text of a workflow file, with all else in it as it was: comments, order, style. Pure.

use std::ops::Range;

use super::StageName;
use super::problem::{Problem, Problems};
use super::raw::{self, Key, Kind, Node};

/// What the `resources` of one stage are to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub stage: StageName,
    /// Keys and values as the file has them: `memory`, `4096M`.
    pub fields: Vec<(&'static str, String)>,
}

/// A changed text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    pub text: String,
    /// What was left as it is, and why: a sentence each.
    pub left: Vec<String>,
}

/// `text` with the values of `wanted`: in the place of those that a stage has, or before its other ones.
///
/// A value that is written as a template, or once for several stages by an alias, is left.
///
/// # Errors
/// What keeps the text from being read.
pub fn resources(text: &str, wanted: &[Wanted]) -> Result<Edited, Vec<Problem>> {
    let mut problems = Problems::default();
    let Some(root) = raw::read(text, &mut problems).filter(|_| problems.is_empty()) else {
        return Err(problems.finish(text));
    };
    let stages = entry(&root, "stages").map_or(&[][..], |(_, stages)| entries(stages));
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut left = Vec::new();
    for Wanted { stage, fields } in wanted {
        let Some(at) = stages.iter().position(|(key, _)| key.text == stage.0) else {
            left.push(format!("the file has no stage `{stage}`"));
            continue;
        };
        let (key, node) = &stages[at];
        // What an alias names stands elsewhere, and is not this stage's alone.
        let own = key.span.start..stages.get(at + 1).map_or(text.len(), |(next, _)| next.span.start);
        let there = entry(node, "resources").map(|(_, resources)| resources);
        let mut new = Vec::new();
        for (field, value) in fields {
            let Some((_, old)) = there.and_then(|resources| entry(resources, field)) else {
                new.push(format!("{field}: {value}"));
                continue;
            };
            match &old.kind {
                _ if !own.contains(&old.span.start) => {
                    left.push(format!("stage `{stage}`: `{field}` is left: it is written once for several stages"));
                }
                Kind::Scalar { text, .. } if !text.contains("${{") => edits.push((old.span.clone(), value.clone())),
                _ => left.push(format!("stage `{stage}`: `{field}` is left: it is computed")),
            }
        }
        if new.is_empty() {
            continue;
        }
        let whole = match there {
            Some(resources) => before_others(resources, text, &own, &new.join(", "), &new),
            None => before_others(node, text, &own, &format!("resources: {{{}}}", new.join(", ")), &[]),
        };
        match whole {
            Some(edit) => edits.push(edit),
            None => left.push(format!("stage `{stage}` is left: nothing can be put into it as it is written")),
        }
    }
    edits.sort_by_key(|(place, _)| place.start);
    let mut edited = String::with_capacity(text.len());
    let mut done = 0;
    for (place, value) in edits {
        edited.push_str(&text[done..place.start]);
        edited.push_str(&value);
        done = place.end;
    }
    edited.push_str(&text[done..]);
    Ok(Edited { text: edited, left })
}

fn entries(node: &Node) -> &[(Key, Node)] {
    match &node.kind {
        Kind::Map(entries) => entries,
        _ => &[],
    }
}

fn entry<'n>(node: &'n Node, name: &str) -> Option<&'n (Key, Node)> {
    entries(node).iter().find(|(key, _)| key.text == name)
}

/// An insertion at the beginning of a map: of `joined` in one in braces, of `lines` (or `joined`) in one of lines.
fn before_others(map: &Node, text: &str, own: &Range<usize>, joined: &str, lines: &[String]) -> Option<(Range<usize>, String)> {
    let Kind::Map(entries) = &map.kind else { return None };
    if !own.contains(&map.span.start) {
        return None;
    }
    let first = entries.first().map(|(key, _)| key.span.start);
    if text[map.span.start..].starts_with('{') {
        let at = map.span.start + 1;
        return Some((
            at..at,
            if first.is_some() {
                format!("{joined}, ")
            } else {
                joined.to_owned()
            },
        ));
    }
    let at = first?;
    let indent = &text[text[..at].rfind('\n').map_or(0, |newline| newline + 1)..at];
    let alone = indent.bytes().all(|byte| byte == b' ');
    let line = |text: &str| format!("{text}\n{indent}");
    let inserted = match lines {
        [] => line(joined),
        lines => lines.iter().map(|text| line(text)).collect(),
    };
    alone.then_some((at..at, inserted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
version: 1
name: flow
defaults: {image: none, resources: {cpus: 8}}  # all of it
stages:
  a:
    resources: {memory: 64G, time: \"24:00:00\"}   # guessed
    run: \"true\"
  b:
    # not much
    resources:
      cpus: 4      # as it was
      time: ${{ params.time }}
    run: echo ä
  c: {run: [\"true\"]}
  d:
    run: |
      true
  e: {run: [\"true\"], resources: {}}
";

    fn wanted(stage: &str, fields: &[(&'static str, &str)]) -> Wanted {
        Wanted {
            stage: StageName(stage.into()),
            fields: fields.iter().map(|&(field, value)| (field, value.to_owned())).collect(),
        }
    }

    #[test]
    fn values_change_and_all_else_stays() {
        let edited = resources(
            FILE,
            &[
                wanted("a", &[("memory", "2048M"), ("time", "60m"), ("cpus", "2")]),
                wanted("b", &[("cpus", "1"), ("memory", "64M"), ("time", "10m")]),
                wanted("c", &[("cpus", "1")]),
                wanted("d", &[("cpus", "1"), ("memory", "64M")]),
                wanted("e", &[("cpus", "1")]),
                wanted("gone", &[("cpus", "1")]),
            ],
        );
        let edited = edited.unwrap();
        let expected = FILE
            .replace(
                "{memory: 64G, time: \"24:00:00\"}   # guessed",
                "{cpus: 2, memory: 2048M, time: 60m}   # guessed",
            )
            .replace("cpus: 4      # as it was", "memory: 64M\n      cpus: 1      # as it was")
            .replace("c: {run", "c: {resources: {cpus: 1}, run")
            .replace("    run: |", "    resources: {cpus: 1, memory: 64M}\n    run: |")
            .replace("resources: {}", "resources: {cpus: 1}");
        assert_eq!(edited.text, expected);
        assert_eq!(
            edited.left,
            ["stage `b`: `time` is left: it is computed", "the file has no stage `gone`"]
        );
    }

    #[test]
    fn what_an_alias_names_is_left() {
        let file = "stages:\n  a: {run: x, resources: &big {memory: 64G}}\n  b: {run: x, resources: *big}\n  c: &c\n    run: x\n  d: *c\n";
        let edited = resources(
            file,
            &[wanted("b", &[("memory", "1M"), ("cpus", "1")]), wanted("d", &[("cpus", "1")])],
        );
        let edited = edited.unwrap();
        assert_eq!((edited.text.as_str(), edited.left.len()), (file, 3), "{:?}", edited.left);
        assert!(resources("stages: [", &[]).is_err());
    }
}
