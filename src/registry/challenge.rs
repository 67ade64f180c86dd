//! `WWW-Authenticate` (RFC 9110, 11.6.1): one or several challenges in one or several headers.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
        /// `insufficient_scope`, `invalid_token`.
        error: Option<String>,
    },
    Basic,
}

/// All challenges that can be met, in their order; what cannot be read is skipped.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(split).filter_map(challenge).collect()
}

type Parameters = Vec<(String, String)>;

fn challenge((scheme, parameters): (String, Parameters)) -> Option<Challenge> {
    let get = |name: &str| {
        let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope"),
            error: get("error"),
        }),
        "basic" => Some(Challenge::Basic),
        _ => None,
    }
}

/// A header's challenges. A word that no `=` follows begins the next one.
fn split(text: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '\t', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let after = after.trim_start_matches([' ', '\t']);
        rest = match (after.strip_prefix('='), found.last_mut()) {
            (Some(after), Some((_, parameters))) => {
                let (value, after) = value(after.trim_start_matches([' ', '\t']));
                parameters.push((word.to_owned(), value));
                after
            }
            // A parameter of no scheme.
            (Some(_), None) => return found,
            (None, _) => {
                found.push((word.to_owned(), Vec::new()));
                after
            }
        };
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
}

/// A token or a quoted string, and what comes after it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
            error: None,
        }
    }

    #[test]
    fn as_registries_write_them() {
        assert_eq!(
            of(&[r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#]),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/debian:pull")
            )]
        );
        assert_eq!(
            of(&["bearer realm=https://h/t , service = x"]),
            [bearer("https://h/t", Some("x"), None)]
        );
        assert_eq!(of(&[r#"Basic realm="a, b=c""#]), [Challenge::Basic]);
        assert_eq!(
            of(&[r#"Negotiate, Basic realm="x", Bearer realm="https://h/a\"b",scope="a:b:pull,push""#]),
            [Challenge::Basic, bearer("https://h/a\"b", None, Some("a:b:pull,push"))]
        );
        assert_eq!(
            of(&["Basic", r#"Bearer realm="https://h""#]),
            [Challenge::Basic, bearer("https://h", None, None)]
        );
        let [Challenge::Bearer { error, .. }] = &of(&[r#"Bearer realm="r",error="insufficient_scope""#])[..] else {
            panic!("one challenge")
        };
        assert_eq!(error.as_deref(), Some("insufficient_scope"));
    }

    #[test]
    fn nonsense_is_no_challenge() {
        for text in [
            "",
            ",,,",
            "=",
            "a=b",
            "Bearer",
            "Bearer realm=",
            r#"Bearer realm=""#,
            "Digest x=y",
            "= = =",
            r#""Bearer""#,
        ] {
            assert_eq!(of(&[text]), [], "{text}");
        }
    }
}
