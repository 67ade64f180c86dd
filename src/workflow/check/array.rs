//! `array`: how many tasks, and what each is about.

use serde_json::{Map, Value};

use super::super::Array;
use super::super::paths;
use super::super::problem::Problems;
use super::super::raw::{Kind, Node};
use super::fields::{Fields, described, entries, list, shown, whole};
use super::stage::Around;
use super::{templates, values};

const LARGEST: u32 = 1_000_000;

/// A count, or one of `{count}`, `{values}`, `{file}`, `{matrix}`, each with `max_parallel`.
pub fn array(node: &Node, around: &Around<'_>, problems: &mut Problems) -> Option<Array> {
    let count = |node: &Node, problems: &mut Problems| {
        let text = templates::text(node, "`array`", "4", around.text, &around.declared, problems)?;
        whole(node, &text, "the count of an array", 1..=LARGEST, problems)
    };
    match &node.kind {
        Kind::Scalar { .. } => {
            return Some(Array {
                count: count(node, problems)?,
                max_parallel: None,
                values: Vec::new(),
            });
        }
        Kind::List(_) => return of_values(node.span.clone(), listed(node, problems), None, problems),
        Kind::Map(_) => {}
    }
    let fields = Fields::read(node, "`array`", &["count", "values", "file", "matrix", "max_parallel"], problems)?;
    let max_parallel = fields.get("max_parallel").and_then(|node| {
        let text = templates::text(node, "`max_parallel`", "32", around.text, &around.declared, problems)?;
        whole(node, &text, "`max_parallel`", 1..=LARGEST, problems)
    });
    let kinds: Vec<&str> = ["count", "values", "file", "matrix"]
        .into_iter()
        .filter(|key| fields.get(key).is_some())
        .collect();
    let &[kind] = kinds.as_slice() else {
        let what = match kinds.as_slice() {
            [] => "does not say how many tasks there are".to_owned(),
            many => format!("has {} at once", many.join(" and ")),
        };
        problems.hint(
            node.span.clone(),
            format!("`array` {what}"),
            "it is a count, or one of `{count: 4}`, `{values: [a, b]}`, `{file: samples.tsv}`, `{matrix: {a: [1, 2]}}`".to_owned(),
        );
        return None;
    };
    let source = fields.get(kind)?;
    let place = source.span.clone();
    match kind {
        "count" => Some(Array {
            count: count(source, problems)?,
            max_parallel,
            values: Vec::new(),
        }),
        "values" => of_values(place, listed(source, problems), max_parallel, problems),
        "file" => of_values(place, rows(source, around, problems)?, max_parallel, problems),
        _ => of_values(place, product(source, problems)?, max_parallel, problems),
    }
}

fn of_values(place: std::ops::Range<usize>, values: Vec<Value>, max_parallel: Option<u32>, problems: &mut Problems) -> Option<Array> {
    match u32::try_from(values.len()) {
        Ok(count @ 1..=LARGEST) => Some(Array {
            count,
            max_parallel,
            values,
        }),
        Ok(0) => {
            problems.add(place, "this array has no task");
            None
        }
        _ => {
            problems.add(place, format!("this array has more than {LARGEST} tasks"));
            None
        }
    }
}

fn listed(node: &Node, problems: &mut Problems) -> Vec<Value> {
    list(node, "`values`", "[sample1, sample2]", problems)
        .iter()
        .map(values::value)
        .collect()
}

/// A row a task: tab-separated, the first row names the columns.
fn rows(node: &Node, around: &Around<'_>, problems: &mut Problems) -> Option<Vec<Value>> {
    let name = templates::text(node, "`file`", "samples.tsv", around.text, &around.declared, problems)?;
    let path = paths::absolute(around.dir, &name);
    let text = match (around.read)(&path) {
        Ok(text) => text,
        Err(error) => {
            problems.add(node.span.clone(), format!("cannot read {}: {error}", path.display()));
            return None;
        }
    };
    let text = text.trim_start_matches('\u{feff}');
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let columns: Vec<&str> = lines
        .next()
        .map(|(_, line)| line.split('\t').map(str::trim).collect())
        .unwrap_or_default();
    for (number, column) in columns.iter().enumerate() {
        let well = column.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && column.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !well || columns[..number].contains(column) {
            problems.add(
                node.span.clone(),
                format!("{}: `{}` cannot be the name of a column", path.display(), shown(column)),
            );
            return None;
        }
    }
    let mut rows = Vec::new();
    for (number, line) in lines {
        let cells: Vec<&str> = line.split('\t').collect();
        if cells.len() != columns.len() {
            problems.add(
                node.span.clone(),
                format!("{}:{}: {} columns, not {}", path.display(), number + 1, cells.len(), columns.len()),
            );
            return None;
        }
        if rows.len() > LARGEST as usize {
            break;
        }
        let cells = columns
            .iter()
            .zip(cells)
            .map(|(column, cell)| ((*column).to_owned(), Value::String(cell.to_owned())));
        rows.push(Value::Object(cells.collect()));
    }
    Some(rows)
}

/// Every combination; the last key turns fastest.
fn product(node: &Node, problems: &mut Problems) -> Option<Vec<Value>> {
    let mut rows = vec![Map::new()];
    for (key, node) in entries(node, "`matrix`", problems)? {
        let Kind::List(list) = &node.kind else {
            problems.add(
                node.span.clone(),
                format!("`{}` of a matrix is a list, not {}", shown(&key.text), described(node)),
            );
            return None;
        };
        if rows.len().saturating_mul(list.len()) > LARGEST as usize {
            problems.add(node.span.clone(), format!("this matrix has more than {LARGEST} tasks"));
            return None;
        }
        rows = rows
            .iter()
            .flat_map(|row| {
                list.iter().map(|entry| {
                    let mut row = row.clone();
                    row.insert(key.text.clone(), values::value(entry));
                    row
                })
            })
            .collect();
    }
    Some(rows.into_iter().filter(|row| !row.is_empty()).map(Value::Object).collect())
}
