//! `${{ expression }}` in a text.
//!
//! Only the expressions are the template language's (minijinja's); a text has no blocks and no comments, so that
//! `$x`, `{{`, `{%` and `{#` outside `${{ }}` belong to the shell, to awk, to whoever wrote them. A `${{` itself is
//! written `${{ "${{" }}`.
//!
//! Expressions end: there are no loops, no functions, and only filters whose results stay small.

use std::ops::Range;
use std::sync::LazyLock;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};

use super::Template;
use super::scope::{Miss, Scope, is_group};

/// The longest expression, and the longest text that comes out of one.
const MAX_EXPRESSION: usize = 4096;
const MAX_RESULT: usize = 1 << 20;

const OPEN: &str = "${{";
const CLOSE: &str = "}}";

/// A template that comes out as `text`, whatever is in it.
pub(crate) fn literal(text: &str) -> Template {
    Template(text.replace(OPEN, "${{ \"${{\" }}"))
}

/// Whether a template comes out as it stands.
pub(crate) fn is_literal(text: &str) -> bool {
    !text.contains(OPEN)
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// Bytes of the template.
    pub at: Range<usize>,
    pub message: String,
    pub hint: Option<String>,
}

impl TemplateError {
    /// What to write instead, where that is known.
    pub fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Expression {
        source: &'a str,
        /// Bytes of the template, `${{` and `}}` included.
        whole: Range<usize>,
        /// Bytes of the template, of `source` alone.
        at: Range<usize>,
    },
}

/// A dotted name in a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub path: String,
    /// Bytes of the template.
    pub at: Range<usize>,
}

/// The filters: each returns no more than it is given, or checks. No `range`, no functions at all.
static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    use minijinja::filters;
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("pad", pad);
    environment.add_filter("replace", replace);
    environment.add_filter("join", join);
    environment.add_filter("basename", |path: String| path.rsplit('/').next().unwrap_or_default().to_owned());
    environment.add_filter("dirname", |path: String| match path.rfind('/') {
        Some(0) => "/".to_owned(),
        Some(at) => path[..at].to_owned(),
        None => ".".to_owned(),
    });
    environment.add_filter("abs", filters::abs);
    environment.add_filter("bool", filters::bool);
    environment.add_filter("capitalize", filters::capitalize);
    environment.add_filter("default", filters::default);
    environment.add_filter("first", filters::first);
    environment.add_filter("float", filters::float);
    environment.add_filter("int", filters::int);
    environment.add_filter("last", filters::last);
    environment.add_filter("length", filters::length);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("max", filters::max);
    environment.add_filter("min", filters::min);
    environment.add_filter("round", filters::round);
    environment.add_filter("split", filters::split);
    environment.add_filter("string", filters::string);
    environment.add_filter("trim", filters::trim);
    environment.add_filter("upper", filters::upper);
    environment.add_test("defined", minijinja::tests::is_defined);
    environment
});

/// The names of the filters, for suggestions.
const FILTERS: [&str; 23] = [
    "pad",
    "replace",
    "join",
    "basename",
    "dirname",
    "abs",
    "bool",
    "capitalize",
    "default",
    "first",
    "float",
    "int",
    "last",
    "length",
    "lower",
    "max",
    "min",
    "round",
    "split",
    "string",
    "trim",
    "upper",
    "defined",
];

/// `7|pad(5)` is `00007`.
fn pad(value: Value, width: usize) -> Result<String, Error> {
    if width > 64 {
        return Err(Error::new(ErrorKind::InvalidOperation, "a width of at most 64 is padded to"));
    }
    if !matches!(value.kind(), ValueKind::Number | ValueKind::String) {
        return Err(Error::new(ErrorKind::InvalidOperation, "only a number or a text is padded"));
    }
    Ok(format!("{:0>width$}", value.to_string()))
}

fn replace(value: String, from: String, to: String) -> Result<String, Error> {
    let times = value.matches(&from).count();
    let grown = value.len().saturating_add(times.saturating_mul(to.len()));
    if grown > MAX_RESULT {
        return Err(too_long());
    }
    Ok(value.replace(&from, &to))
}

fn join(values: Value, separator: Option<String>, rest: Kwargs) -> Result<String, Error> {
    rest.assert_all_used()?;
    let separator = separator.unwrap_or_default();
    let mut joined = String::new();
    for (number, value) in values.try_iter()?.enumerate() {
        if number > 0 {
            joined.push_str(&separator);
        }
        joined.push_str(&value.to_string());
        if joined.len() > MAX_RESULT {
            return Err(too_long());
        }
    }
    Ok(joined)
}

fn too_long() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the result is longer than {MAX_RESULT} bytes"))
}

/// Splits a template into its pieces.
pub(crate) fn pieces(text: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(found) = text[at..].find(OPEN) {
        let open = at + found;
        if open > at {
            pieces.push(Piece::Text(&text[at..open]));
        }
        let start = open + OPEN.len();
        let length = expression_length(&text[start..]).ok_or_else(|| TemplateError {
            at: open..start,
            message: "`${{` is never closed".into(),
            hint: Some("end it with `}}`".into()),
        })?;
        let end = start + length;
        if length > MAX_EXPRESSION {
            return Err(TemplateError {
                at: open..start,
                message: format!("this expression is longer than {MAX_EXPRESSION} bytes"),
                hint: None,
            });
        }
        let inner = &text[start..end];
        let trimmed = inner.trim();
        let lead = start + (inner.len() - inner.trim_start().len());
        if trimmed.is_empty() {
            return Err(TemplateError {
                at: open..end + CLOSE.len(),
                message: "this expression is empty".into(),
                hint: Some("write `${{ params.NAME }}`, or the like".into()),
            });
        }
        pieces.push(Piece::Expression {
            source: trimmed,
            whole: open..end + CLOSE.len(),
            at: lead..lead + trimmed.len(),
        });
        at = end + CLOSE.len();
    }
    if at < text.len() {
        pieces.push(Piece::Text(&text[at..]));
    }
    Ok(pieces)
}

/// Bytes up to the closing `}}` that is in no string and in no `{ }`.
fn expression_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut quote, mut depth, mut at) = (None, 0usize, 0);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(mark), byte) if byte == mark => quote = None,
            (Some(_), _) => {}
            (None, mark @ (b'"' | b'\'')) => quote = Some(mark),
            (None, b'{') => depth += 1,
            (None, b'}') if depth > 0 => depth -= 1,
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Every name that the expressions of a template use, whichever way they turn out; or why one is no expression.
pub(crate) fn names(text: &str) -> Result<Vec<Name>, TemplateError> {
    let mut names = Vec::new();
    for piece in pieces(text)? {
        let Piece::Expression { source, at, .. } = piece else { continue };
        let expression = ENVIRONMENT
            .compile_expression(source)
            .map_err(|error| explain(&error, source, &at, &[]))?;
        let mut paths: Vec<String> = expression.undeclared_variables(true).into_iter().collect();
        paths.sort();
        names.extend(paths.into_iter().map(|path| {
            let offset = find_word(source, &path);
            Name {
                at: match offset {
                    Some(offset) => at.start + offset..at.start + offset + path.len(),
                    None => at.clone(),
                },
                path,
            }
        }));
    }
    Ok(names)
}

/// `word` in `text`, not as a part of a longer name.
fn find_word(text: &str, word: &str) -> Option<usize> {
    let part_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let before = at.checked_sub(1).and_then(|before| text.as_bytes().get(before));
        let after = text.as_bytes().get(at + word.len());
        !before.is_some_and(|b| part_of_name(b) || *b == b'.') && !after.is_some_and(part_of_name)
    })
}

/// Expands every expression of a text.
pub(crate) fn render(text: &str, scope: &Scope) -> Result<String, TemplateError> {
    let mut result = String::with_capacity(text.len());
    for piece in pieces(text)? {
        match piece {
            Piece::Text(text) => result.push_str(text),
            Piece::Expression { source, at, .. } => {
                let value = evaluate(source, &at, scope)?;
                result.push_str(&value);
                if result.len() > MAX_RESULT.max(text.len() * 2) {
                    return Err(TemplateError {
                        at,
                        message: format!("the result is longer than {MAX_RESULT} bytes"),
                        hint: None,
                    });
                }
            }
        }
    }
    Ok(result)
}

fn evaluate(source: &str, at: &Range<usize>, scope: &Scope) -> Result<String, TemplateError> {
    let fail = |message: String| TemplateError {
        at: at.clone(),
        message,
        hint: None,
    };
    scope.take_misses();
    let value = ENVIRONMENT
        .compile_expression(source)
        .and_then(|expression| expression.eval(scope.value()))
        .map_err(|error| explain(&error, source, at, &scope.take_misses()))?;
    let misses = scope.take_misses();
    match value.kind() {
        ValueKind::Undefined => Err(explain(&Error::from(ErrorKind::UndefinedError), source, at, &misses)),
        ValueKind::None => Err(fail(format!("`{source}` is null, which is no text"))),
        _ if is_group(&value) => Err(fail(format!("`{source}` is a group of names, not a value"))),
        ValueKind::Bytes | ValueKind::Invalid => Err(fail(format!("`{source}` is no text"))),
        // As YAML and the shell write it.
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number if f64::try_from(value.clone()).is_ok_and(|number| !number.is_finite()) => {
            Err(fail(format!("`{source}` is no finite number")))
        }
        _ => Ok(value.to_string()),
    }
}

fn explain(error: &Error, source: &str, at: &Range<usize>, misses: &[Miss]) -> TemplateError {
    if let Some(miss) = misses.last()
        && matches!(error.kind(), ErrorKind::UndefinedError)
    {
        return TemplateError {
            at: match source.find(miss.key.as_str()) {
                Some(offset) => at.start + offset..at.start + offset + miss.key.len(),
                None => at.clone(),
            },
            message: miss.message(),
            hint: miss.hint(),
        };
    }
    let detail = error.detail().unwrap_or_default();
    let (message, hint) = match error.kind() {
        ErrorKind::UndefinedError => (format!("`{source}` is nothing"), None),
        // The engine's detail is `filter NAME is unknown`.
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest => match detail.split(' ').nth(1) {
            Some(name) => (format!("unknown filter `{name}`"), super::problem::suggest(name, FILTERS)),
            None => (detail.to_owned(), None),
        },
        ErrorKind::SyntaxError => (format!("`{source}` is not an expression: {detail}"), None),
        _ if detail.is_empty() => (format!("`{source}`: {}", error.kind()), None),
        _ => (format!("`{source}`: {detail}"), None),
    };
    TemplateError {
        at: at.clone(),
        message,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;
    use serde_json::json;

    use super::*;
    use crate::workflow::{Array, Resources};

    fn scope() -> Scope {
        let params = IndexMap::from_iter([
            ("shards".to_owned(), json!(4)),
            ("one".to_owned(), json!(1.0)),
            ("flag".to_owned(), json!(true)),
            ("text".to_owned(), json!("a ${{ params.shards }} $HOME")),
            ("list".to_owned(), json!(["x", "y"])),
        ]);
        let array = Array {
            count: 4,
            max_parallel: None,
            values: vec![json!({"sample": "s0"}), json!({"sample": "s1"})],
        };
        Scope::builder()
            .params(&params)
            .data([
                ("input", "/store/in".to_owned(), vec!["reads.bam", "plain"]),
                ("test-set", "/t".to_owned(), vec![]),
            ])
            .images([("tools", Some("sha256:ab".to_owned())), ("open", None)])
            .stage(
                "call",
                &Resources {
                    cpus: 3,
                    ..Resources::default()
                },
            )
            .array(&array, 1)
            .run("/run/1")
            .build()
    }

    #[test]
    fn expressions_are_expanded() {
        for (text, expanded) in [
            ("", ""),
            ("${{ params.shards }}", "4"),
            ("${{params.shards}}", "4"),
            (
                "a-${{ array.index | pad(5) }}-of-${{ array.count|pad(5) }}.gz",
                "a-00001-of-00004.gz",
            ),
            ("${{ params.shards * 2 + 1 }} ${{ params.shards / 2 }} ${{ 7 // 2 }}", "9 2.0 3"),
            ("${{ params.one }} ${{ params.flag }}", "1.0 true"),
            ("${{ 'many' if params.shards > 1 else 'one' }}", "many"),
            (
                "${{ data.input }}/x ${{ data.input['reads.bam'] }} ${{ data.input.plain }}",
                "/store/in/x /store/in/reads.bam /store/in/plain",
            ),
            ("${{ data['test-set'] }} ${{ data.input ~ '/y' }}", "/t /store/in/y"),
            (
                "${{ data.input['reads.bam'] | basename }} ${{ data.input['reads.bam'] | dirname }}",
                "reads.bam /store/in",
            ),
            (
                "${{ images.tools.digest }} ${{ stage.name }} ${{ run.dir }} ${{ resources.cpus }}",
                "sha256:ab call /run/1 3",
            ),
            ("${{ array.value.sample | upper }}", "S1"),
            (
                "${{ params.list | join(',') }} ${{ params.list[0] }} ${{ params.list | length }}",
                "x,y x 2",
            ),
            ("${{ array.value.other | default('none') }}", "none"),
            // What comes out is not looked at again.
            ("${{ params.text }}", "a ${{ params.shards }} $HOME"),
            ("${{ \"}}\" }}${{ '${{' }}${{ {'a': {'b': 1}}.a.b }}", "}}${{1"),
        ] {
            assert_eq!(render(text, &scope()).as_deref(), Ok(expanded), "{text}");
        }
    }

    #[test]
    fn all_else_is_left_to_the_shell() {
        for text in [
            "$HOME ${HOME} ${HOME:-x} $(date) $((1+2)) $$ $",
            "awk '{{ print $1 }}' {% if %} {# no comment #} {{ params.shards }}",
            "awk 'BEGIN{for(i=0;i<3;i++){print i}}' }} %} #}",
            "# line statement\n% not one either\n{%- raw -%}{%- endraw -%}",
            "${ { params.shards }} $ {{ params.shards }} \\${x} %{http_code}",
            "{{{{ }}}} {{ '}}' {%",
            "  trailing newline and blanks \n\n",
            "tab\tünïcode\u{0}\r\n",
        ] {
            assert_eq!(render(text, &scope()).as_deref(), Ok(text));
            assert_eq!(names(text), Ok(vec![]));
        }
        assert_eq!(
            render("awk '{{ print $${{ params.shards }} }}' {% ${{ array.index }} %}", &scope()).as_deref(),
            Ok("awk '{{ print $4 }}' {% 1 %}")
        );
        // The newline after an expression stays.
        assert_eq!(render("${{ params.shards }}\n\n", &scope()).as_deref(), Ok("4\n\n"));
    }

    #[test]
    fn what_cannot_be_expanded_says_why() {
        for (text, message) in [
            ("${{ params.nope }}", "`params` has no `nope`"),
            ("${{ nope }}", "unknown name `nope`"),
            ("${{ data.input['raeds.bam'] }}", "`data.input` has no `raeds.bam`"),
            ("${{ params.shards.x }}", "`params.shards.x` is nothing"),
            ("${{ array.value }}", "`array.value` is a group of names, not a value"),
            ("${{ images.open.digest }}", "`images.open.digest` is nothing"),
            ("${{ params.shards", "`${{` is never closed"),
            ("${{ 'a }}", "`${{` is never closed"),
            ("${{ 1 / 0 }}", "`1 / 0` is no finite number"),
            ("${{ params.shards | nope }}", "unknown filter `nope`"),
            ("${{ 'a' * 99999999999 }}", "`'a' * 99999999999`: repeated string is too large"),
        ] {
            assert_eq!(
                render(text, &scope()).map_err(|error| error.message),
                Err(message.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn hostile_expressions_end() {
        let bombs = [
            format!("${{{{ {}1{} }}}}", "(".repeat(1500), ")".repeat(1500)),
            format!("${{{{ 'a'{} }}}}", "|replace('a','aaaaaaaaaaaaaaaaaaaa')".repeat(60)),
            "${{ params.list * 100000000 | join }}".to_owned(),
            "${{ 9 ** 9 ** 9 ** 9 }}".to_owned(),
            "${{ [1] * 99999999 | length }}".to_owned(),
            format!("${{{{ '{}' }}}}", "x".repeat(5000)),
            "${{ x.y".repeat(10_000),
        ];
        for bomb in bombs {
            assert!(render(&bomb, &scope()).is_err(), "{}", &bomb[..60.min(bomb.len())]);
        }
        assert_eq!(render(&format!("${{{{ {}1 }}}}", "-".repeat(3000)), &scope()).as_deref(), Ok("1"));
    }

    #[test]
    fn names_are_found_with_their_places() {
        let text = "x ${{ params.shards + params.s }} ${{ data['a'].b | default(array.index) }}";
        let found: Vec<(String, &str)> = names(text).unwrap().into_iter().map(|name| (name.path, &text[name.at])).collect();
        assert_eq!(
            found,
            [
                ("params.s".to_owned(), "params.s"),
                ("params.shards".to_owned(), "params.shards"),
                ("array.index".to_owned(), "array.index"),
                ("data".to_owned(), "data"),
            ]
        );
    }
}
