//! Reading Rust well enough for the house's rules: formatted by rustfmt, so that lines and indents can be trusted.

/// The lines of code with their numbers from 1: no comments, no items under `#[cfg(test)]`.
pub fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut until: Option<String> = None;
    let mut lines = text.lines().enumerate();
    std::iter::from_fn(move || {
        loop {
            let (index, line) = lines.next()?;
            let trimmed = line.trim_start();
            if let Some(end) = &until {
                // The item ends with its closing brace at the attribute's indent, or at once with a semicolon.
                let declared = trimmed.ends_with(';') && line.find(trimmed) == Some(end.len() - 1);
                if line == end || declared {
                    until = None;
                }
            } else if trimmed.starts_with("#[cfg(test)]") {
                until = Some(format!("{}}}", &line[..line.len() - trimmed.len()]));
            } else if !trimmed.starts_with("//") {
                return Some((index + 1, line));
            }
        }
    })
}

/// Every path that begins with `crate::`, without it, and with the line where it stands; groups are taken apart.
/// `depth` times `super::` is `crate::` too.
pub fn imports(text: &str, depth: usize) -> Vec<(usize, String)> {
    let roots = ["crate::".to_owned(), "super::".repeat(depth)];
    let lines: Vec<(usize, &str)> = code_lines(text).collect();
    let mut found = Vec::new();
    for (at, (number, line)) in lines.iter().enumerate() {
        for root in roots.iter().filter(|root| !root.is_empty()) {
            for (start, _) in line.match_indices(root.as_str()) {
                // Not the end of a longer path or name.
                let before = line[..start].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                    continue;
                }
                // A group may go on for some lines.
                let rest = lines[at..].iter().map(|(_, line)| *line).collect::<Vec<_>>().join("\n");
                let mut paths = Vec::new();
                expand("", &mut rest[start + root.len()..].chars().peekable(), &mut paths);
                found.extend(paths.into_iter().map(|path| (*number, path)));
            }
        }
    }
    found
}

/// One use tree: `a::b`, `a::{b, c::d}`, `{a, b}`.
fn expand(prefix: &str, rest: &mut std::iter::Peekable<std::str::Chars>, found: &mut Vec<String>) {
    let mut path = prefix.to_owned();
    while let Some(&c) = rest.peek() {
        match c {
            '{' => {
                rest.next();
                while rest.peek().is_some_and(|c| *c != '}') {
                    if rest.next_if(|c| c.is_whitespace() || *c == ',').is_none() {
                        expand(&path, rest, found);
                    }
                }
                rest.next();
                return;
            }
            c if c.is_alphanumeric() || c == '_' || c == ':' || c == '*' => path.extend(rest.next()),
            _ => break,
        }
    }
    found.push(path);
    // `as name` belongs to the path before it; anything else is the caller's.
    while rest.next_if(|c| !matches!(c, ',' | '}' | ';' | '\n')).is_some() {}
    // Always forward: a stray character must not hold the caller for ever.
    rest.next_if(|c| *c == ';' || *c == '\n');
}

/// The lines inside Markdown's fenced code blocks, with their numbers from 1.
pub fn fenced(text: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            found.push((index + 1, line));
        }
    }
    found
}

#[test]
fn imports_are_found_however_they_are_written() {
    let text = "\
use crate::oci::Digest;
use crate::{
    engine::{self, Backend as B},
    store,
};
use super::super::net;
// use crate::cli;
fn f() -> crate::lock::Lock { other_crate::g() }
#[cfg(test)]
mod tests {
    use crate::registry;
}
#[cfg(test)]
mod more;
pub use crate::state::*;
";
    let found = imports(text, 2);
    let found: Vec<(usize, &str)> = found.iter().map(|(line, path)| (*line, path.as_str())).collect();
    assert_eq!(
        found,
        [
            (1, "oci::Digest"),
            (2, "engine::self"),
            (2, "engine::Backend"),
            (2, "store"),
            (6, "net"),
            (8, "lock::Lock"),
            (15, "state::*"),
        ]
    );
}
