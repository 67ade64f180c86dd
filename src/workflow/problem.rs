//! Mistakes in a file, with their places.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// From 1; 0 when the mistake is not in the file (an override of a parameter).
    pub line: usize,
    /// From 1, in characters; 0 as above.
    pub column: usize,
    /// Byte offsets in the file's text; empty at 0 when the mistake is not in the file.
    pub span: Range<usize>,
    /// What is wrong, in one line.
    pub message: String,
    /// What to write instead, where that is known.
    pub hint: Option<String>,
}

impl Problem {
    /// `file:line:column: message`, and the hint after a semicolon.
    pub fn at<'a>(&'a self, file: &'a Path) -> impl fmt::Display + 'a {
        struct At<'a>(&'a Problem, &'a Path);
        impl fmt::Display for At<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let At(problem, file) = self;
                write!(f, "{}", file.display())?;
                if problem.line > 0 {
                    write!(f, ":{}:{}", problem.line, problem.column)?;
                }
                write!(f, ": {problem}")
            }
        }
        At(self, file)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Where in the text a mistake is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Outside,
    At(Range<usize>),
}

impl From<Range<usize>> for Place {
    fn from(span: Range<usize>) -> Place {
        Place::At(span)
    }
}

/// Mistakes found so far, in any order.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<(Place, String, Option<String>)>);

/// More mistakes than anyone reads are not kept.
const LIMIT: usize = 500;

impl Problems {
    pub fn add(&mut self, place: impl Into<Place>, message: impl Into<String>) {
        self.push(place.into(), message.into(), None);
    }

    pub fn hint(&mut self, place: impl Into<Place>, message: impl Into<String>, hint: impl Into<Option<String>>) {
        self.push(place.into(), message.into(), hint.into());
    }

    fn push(&mut self, place: Place, message: String, hint: Option<String>) {
        let entry = (place, shown(message), hint.map(shown));
        // A mistake in what several stages share (an anchor, the defaults) is one mistake.
        if !self.is_full() && !self.0.contains(&entry) {
            self.0.push(entry);
        }
    }

    /// Whether what is found from here on is thrown away: looking for more is a waste.
    pub fn is_full(&self) -> bool {
        self.0.len() >= LIMIT
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sorted by place, those outside the text first.
    pub fn finish(self, text: &str) -> Vec<Problem> {
        let starts: Vec<usize> = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
            .collect();
        let mut problems: Vec<Problem> = self
            .0
            .into_iter()
            .map(|(place, message, hint)| {
                let Place::At(span) = place else {
                    return Problem {
                        line: 0,
                        column: 0,
                        span: 0..0,
                        message,
                        hint,
                    };
                };
                let start = text.floor_char_boundary(span.start.min(text.len()));
                let end = text.ceil_char_boundary(span.end.clamp(start, text.len()));
                let line = starts.partition_point(|&at| at <= start);
                Problem {
                    line,
                    column: text[starts[line - 1]..start].chars().count() + 1,
                    span: start..end,
                    message,
                    hint,
                }
            })
            .collect();
        problems.sort_by(|a, b| (a.line, a.column, &a.message).cmp(&(b.line, b.column, &b.message)));
        problems
    }
}

/// In one line, and harmless to a terminal: what a file says is repeated in messages.
fn shown(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let each = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(each).collect()
}

/// The known name that was probably meant.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match name.chars().count() {
        0 | 1 => 0,
        length => (length / 3).clamp(1, 3),
    };
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn distance(a: &str, b: &str) -> usize {
    // Comparing is quadratic, and nobody mistypes a name of kilobytes.
    if a.len() > 256 || b.len() > 256 {
        return usize::MAX;
    }
    strsim::osa_distance(&a.to_lowercase(), &b.to_lowercase())
}

/// `did you mean `x`?`, or the whole list when it is short.
pub(super) fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(near) = nearest(name, known.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let all: Vec<&str> = known.into_iter().take(13).collect();
    (!all.is_empty() && all.len() <= 12).then(|| format!("known: {}", all.join(", ")))
}
