//! How the well-known registries ask for a token, each in its manner; and small answers that go wrong.

use std::fs;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dvrun::net::{Client, RegistryOptions};
use dvrun::registry::{Credential, Credentials, TagPolicy};
use serde_json::json;
use tempfile::tempdir;

use super::{client, fetch, fetch_with, options};
use crate::support::faults::{Asked, End, Faults, Reply};
use crate::support::image::image;

/// A registry's challenge, without its realm; the path of its realm, and on whose host; the query and the user that its
/// token server must see; the field of its answer.
struct Manner {
    name: &'static str,
    challenge: &'static str,
    realm: &'static str,
    own_host: bool,
    query: &'static str,
    user: Option<&'static str>,
    answer: &'static str,
}

const MANNERS: [Manner; 9] = [
    Manner {
        name: "Docker Hub",
        challenge: r#",service="registry.docker.io",scope="repository:lab/x:pull""#,
        realm: "/token",
        own_host: false,
        query: "service=registry.docker.io&scope=repository%3Alab%2Fx%3Apull",
        user: None,
        answer: r#"{"token":"T","access_token":"T","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#,
    },
    Manner {
        name: "gcr.io",
        challenge: r#",service="gcr.io",scope="repository:lab/x:pull""#,
        realm: "/v2/token",
        own_host: true,
        query: "service=gcr.io&scope=repository%3Alab%2Fx%3Apull",
        user: None,
        answer: r#"{"token":"T","expires_in":43200}"#,
    },
    Manner {
        name: "Artifact Registry",
        challenge: r#",service="eu-docker.pkg.dev",scope="repository:lab/x:pull""#,
        realm: "/v2/token",
        own_host: true,
        query: "service=eu-docker.pkg.dev&scope=repository%3Alab%2Fx%3Apull&client_id=dvrun",
        user: Some("oauth2accesstoken"),
        answer: r#"{"token":"T"}"#,
    },
    Manner {
        name: "ghcr.io",
        challenge: r#",service="ghcr.io",scope="repository:lab/x:pull""#,
        realm: "/token",
        own_host: true,
        query: "service=ghcr.io&scope=repository%3Alab%2Fx%3Apull",
        user: None,
        answer: r#"{"token":"T"}"#,
    },
    Manner {
        name: "nvcr.io",
        challenge: r#",scope="repository:lab/x:pull,push""#,
        realm: "/proxy_auth",
        own_host: true,
        query: "scope=repository%3Alab%2Fx%3Apull%2Cpush&client_id=dvrun",
        user: Some("$oauthtoken"),
        answer: r#"{"token":"T","expires_in":600}"#,
    },
    Manner {
        name: "Quay",
        challenge: r#",service="quay.io",scope="repository:lab/x:pull""#,
        realm: "/v2/auth",
        own_host: true,
        query: "service=quay.io&scope=repository%3Alab%2Fx%3Apull&client_id=dvrun",
        user: Some("lab+robot"),
        answer: r#"{"token":"T"}"#,
    },
    Manner {
        name: "GitLab",
        challenge: r#",service="container_registry",scope="repository:lab/x:pull",error="invalid_token""#,
        realm: "/jwt/auth",
        own_host: false,
        query: "service=container_registry&scope=repository%3Alab%2Fx%3Apull&client_id=dvrun",
        user: Some("gitlab-ci-token"),
        answer: r#"{"token":"T"}"#,
    },
    Manner {
        name: "Harbor",
        challenge: r#",service="harbor-registry""#,
        realm: "/service/token",
        own_host: true,
        query: "service=harbor-registry&scope=repository%3Alab%2Fx%3Apull&client_id=dvrun",
        user: Some("robot$lab"),
        answer: r#"{"token":"T","access_token":"","expires_in":1800}"#,
    },
    Manner {
        name: "Forgejo",
        challenge: r#",service="container_registry",scope="*""#,
        realm: "/v2/token",
        own_host: true,
        query: "service=container_registry&scope=*",
        user: None,
        answer: r#"{"token":"T"}"#,
    },
];

#[tokio::test]
async fn each_registry_gives_in_its_own_manner() {
    for manner in &MANNERS {
        let tokens = Faults::serve(|asked| give_token(asked.target.as_str(), asked.header("authorization")));
        let elsewhere = tokens.host();
        let image = image(&[b"one"]);
        let server = Faults::serve(move |asked| {
            if asked.header("authorization") == Some("Bearer T") {
                return image.answer(asked);
            }
            if asked.target.starts_with(manner.realm) && asked.target.contains('?') {
                return give_token(&asked.target, asked.header("authorization"));
            }
            let own = asked.header("host").unwrap_or_default();
            let host = if manner.own_host { own } else { &elsewhere };
            Reply::new(401, "").with(
                "WWW-Authenticate",
                format!("Bearer realm=\"http://{host}{}\"{}", manner.realm, manner.challenge),
            )
        });
        let mut credentials = Credentials::none();
        if let Some(user) = manner.user {
            let password = Credential::Password {
                user: user.to_owned(),
                password: "hush".to_owned(),
            };
            credentials.insert(&server.host(), password);
        }
        let (cache, name) = (tempdir().unwrap(), format!("docker://{}/lab/x:1", server.host()));
        fetch_with(&client(), cache.path(), &name, &credentials, TagPolicy::Ask)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", manner.name));
        let asked = if manner.own_host { &server } else { &tokens };
        assert_eq!(
            asked.targets("?"),
            [format!("{}?{}", manner.realm, manner.query)],
            "{}",
            manner.name
        );
    }
}

/// The token of the manner that asks so; 400 for any other question.
fn give_token(target: &str, authorization: Option<&str>) -> Reply {
    let found = MANNERS.iter().find(|manner| {
        // user:hush
        let expected = manner.user.map(|user| match user {
            "oauth2accesstoken" => "Basic b2F1dGgyYWNjZXNzdG9rZW46aHVzaA==",
            "$oauthtoken" => "Basic JG9hdXRodG9rZW46aHVzaA==",
            "lab+robot" => "Basic bGFiK3JvYm90Omh1c2g=",
            "gitlab-ci-token" => "Basic Z2l0bGFiLWNpLXRva2VuOmh1c2g=",
            _ => "Basic cm9ib3QkbGFiOmh1c2g=",
        });
        target == format!("{}?{}", manner.realm, manner.query) && authorization == expected
    });
    match found {
        Some(manner) => Reply::new(200, manner.answer),
        None => Reply::new(400, "another question"),
    }
}

#[tokio::test]
async fn small_answers_that_break_are_asked_for_again() {
    let image = image(&[b"one"]);
    let server = Faults::serve(move |asked| {
        let honest = image.answer(asked);
        match asked.before {
            0 => honest.ending(End::Cut(10)),
            1 => Reply::new(429, "").with("Retry-After", "0"),
            3 => Reply::new(502, ""),
            _ => honest,
        }
    });
    let cache = tempdir().unwrap();
    fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap();
    assert_eq!(server.targets("/manifests/").len(), 3);
}

#[tokio::test]
async fn a_token_server_that_refuses_is_quoted() {
    let server = Faults::serve(|asked| match asked.target.starts_with("/token") {
        true => Reply::new(
            403,
            r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#,
        ),
        false => {
            let host = asked.header("host").unwrap_or_default();
            Reply::new(401, "").with("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token?account=hush""#))
        }
    });
    let cache = tempdir().unwrap();
    let error = fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("DENIED: requested access") && !text.contains("hush"), "{text}");
}

/// Its API, its token server and its credentials are each under another name; a name without a slash is below `library/`.
#[tokio::test]
async fn docker_hub_is_asked_where_it_answers() {
    let image = image(&[b"one"]);
    let expected = format!("Basic {}", BASE64_STANDARD.encode("ada:hush"));
    // A proxy is asked for whole URLs.
    let proxy = Faults::serve(move |asked| {
        if asked.target.starts_with("http://auth.docker.io/token?") {
            return match asked.header("authorization") == Some(&expected) {
                true => Reply::new(200, r#"{"token":"T"}"#),
                false => Reply::new(401, ""),
            };
        }
        match asked.target.strip_prefix("http://registry-1.docker.io/v2/library/debian/") {
            Some(path) if asked.header("authorization") == Some("Bearer T") => image.answer(&Asked {
                target: format!("/v2/x/{path}"),
                ..asked.clone()
            }),
            Some(_) => Reply::new(401, "").with(
                "WWW-Authenticate",
                r#"Bearer realm="http://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#,
            ),
            None => Reply::new(502, ""),
        }
    });
    let mut options = options();
    options.proxy.http = Some(proxy.url(""));
    let plain = RegistryOptions {
        http: true,
        ..RegistryOptions::default()
    };
    options.registries.insert("docker.io".to_owned(), plain);
    let dir = tempdir().unwrap();
    let file = dir.path().join("config.json");
    let auth = json!({"auths": {"https://index.docker.io/v1/": {"auth": BASE64_STANDARD.encode("ada:hush")}}});
    fs::write(&file, auth.to_string()).unwrap();
    let credentials = Credentials::from_files(vec![file]);
    for name in [
        "debian:12",
        "docker://index.docker.io/library/debian:12",
        "registry-1.docker.io/debian:12",
    ] {
        let cache = tempdir().unwrap();
        fetch_with(
            &Client::new(options.clone()).unwrap(),
            cache.path(),
            name,
            &credentials,
            TagPolicy::Ask,
        )
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Basic, with a user that is always the same, and blobs in S3, which refuses what it is not asked for.
#[tokio::test]
async fn ecr_wants_a_password_and_gives_from_s3() {
    let image = image(&[b"one"]);
    let blobs = image.clone();
    let s3 = Faults::serve(move |asked| match (asked.header("authorization"), asked.target.split_once('?')) {
        (None, Some((path, "X-Amz-Signature=hush"))) => blobs.answer(&Asked {
            target: path.to_owned(),
            ..asked.clone()
        }),
        _ => Reply::new(400, "InvalidArgument: Only one auth mechanism allowed"),
    });
    let elsewhere = s3.host();
    let expected = format!("Basic {}", BASE64_STANDARD.encode("AWS:hush"));
    let server = Faults::serve(move |asked| {
        if asked.header("authorization") != Some(&expected) {
            let challenge = r#"Basic realm="https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#;
            return Reply::new(401, "Not Authorized").with("WWW-Authenticate", challenge);
        }
        match asked.target.contains("/blobs/") {
            true => Reply::redirect(format!("http://{elsewhere}{}?X-Amz-Signature=hush", asked.target)),
            false => image.answer(asked),
        }
    });
    let mut credentials = Credentials::none();
    let password = Credential::Password {
        user: "AWS".to_owned(),
        password: "hush".to_owned(),
    };
    credentials.insert(&server.host(), password);
    let (cache, name) = (tempdir().unwrap(), format!("docker://{}/lab/x:1", server.host()));
    fetch_with(&client(), cache.path(), &name, &credentials, TagPolicy::Ask)
        .await
        .unwrap();
    assert_eq!(s3.asked().len(), 2);
}

/// A mirror is another server than the registry: it is not told the registry's password, and may have one of its own.
#[tokio::test]
async fn a_mirror_gets_no_credentials_but_its_own() {
    let image = image(&[b"one"]);
    let (at_mirror, at_origin) = (image.clone(), image);
    let basic = |password: &str| format!("Basic {}", BASE64_STANDARD.encode(format!("ada:{password}")));
    let guarded = |expected: String, image: crate::support::image::Image| {
        Faults::serve(move |asked| match asked.header("authorization") == Some(&expected) {
            true => image.answer(asked),
            false => Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#),
        })
    };
    let (mirror, origin) = (guarded(basic("mirrors"), at_mirror), guarded(basic("origins"), at_origin));
    let mut options = options();
    let settings = RegistryOptions {
        mirrors: vec![mirror.url("")],
        http: true,
        ..RegistryOptions::default()
    };
    options.registries.insert(origin.host(), settings);
    let password = |password: &str| Credential::Password {
        user: "ada".to_owned(),
        password: password.to_owned(),
    };
    let mut credentials = Credentials::none();
    credentials.insert(&origin.host(), password("origins"));
    let name = format!("docker://{}/lab/x:1", origin.host());
    let cache = tempdir().unwrap();
    fetch_with(
        &Client::new(options.clone()).unwrap(),
        cache.path(),
        &name,
        &credentials,
        TagPolicy::Ask,
    )
    .await
    .unwrap();
    assert!(!mirror.asked().is_empty() && mirror.asked().iter().all(|asked| asked.header("authorization").is_none()));
    let before = origin.asked().len();
    credentials.insert(&mirror.host(), password("mirrors"));
    let cache = tempdir().unwrap();
    fetch_with(&Client::new(options).unwrap(), cache.path(), &name, &credentials, TagPolicy::Ask)
        .await
        .unwrap();
    assert_eq!(origin.asked().len(), before, "the mirror has it all");
}
