//! What registries say before they give: challenges, tokens, redirects, mirrors. Each test replays one's manner.

use std::collections::BTreeSet;

use dvrun::net::{Client, Options, RegistryOptions};
use dvrun::registry::{Credential, Credentials, TagPolicy};
use serde_json::json;
use tempfile::tempdir;

use super::{client, fetch, fetch_with, options};
use crate::support::faults::{Asked, Faults, Reply};
use crate::support::image::image;

fn bearer(asked: &Asked) -> Option<&str> {
    asked.header("authorization")?.strip_prefix("Bearer ")
}

fn challenge(server: &str) -> Reply {
    let text = format!(r#"Bearer realm="http://{server}/token",service="reg",scope="repository:lab/x:pull""#);
    Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#).with("WWW-Authenticate", text)
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_for_a_pull() {
    let image = image(&[b"one", b"two"]);
    let server = Faults::serve(move |asked| {
        let host = asked.header("host").unwrap_or_default();
        match bearer(asked) {
            _ if asked.target.starts_with("/token?") => Reply::new(200, r#"{"access_token":"t1","expires_in":1}"#),
            Some("t1") => image.answer(asked),
            _ => challenge(host),
        }
    });
    let cache = tempdir().unwrap();
    let name = format!("docker://{}/lab/x:1", server.host());
    let (_, pulled) = fetch(&client(), cache.path(), &name).await.unwrap();
    assert_eq!(pulled.layers.len(), 2);
    assert_eq!(server.targets("/token"), ["/token?service=reg&scope=repository%3Alab%2Fx%3Apull"]);
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_renewed() {
    let image = image(&[b"one", b"two", b"three"]);
    // Each token is good for one answer.
    let used = std::sync::Mutex::new(std::collections::HashSet::new());
    let server = Faults::serve(move |asked| {
        let host = asked.header("host").unwrap_or_default();
        if asked.target.starts_with("/token?") {
            return Reply::new(200, json!({"token": format!("t{}", asked.before), "expires_in": 0}).to_string());
        }
        match bearer(asked) {
            Some(token) if used.lock().unwrap().insert(token.to_owned()) => image.answer(asked),
            _ => challenge(host),
        }
    });
    let cache = tempdir().unwrap();
    // One after the other: with several at once another request could use up the new token first.
    let slow = Client::new(Options {
        connections: 1,
        ..options()
    })
    .unwrap();
    let (_, pulled) = fetch(&slow, cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap();
    assert_eq!(pulled.layers.len(), 3);
}

#[tokio::test]
async fn a_missing_challenge_is_looked_for_at_v2() {
    let image = image(&[b"one"]);
    let server = Faults::serve(move |asked| {
        let host = asked.header("host").unwrap_or_default();
        match (bearer(asked), asked.target.as_str()) {
            (_, target) if target.starts_with("/token?") => Reply::new(200, r#"{"token":"t1"}"#),
            (None, "/v2/") => challenge(host),
            (Some("t1"), _) => image.answer(asked),
            _ => Reply::new(401, ""),
        }
    });
    let cache = tempdir().unwrap();
    fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap();
    assert!(!server.targets("/v2/").is_empty());
}

#[tokio::test]
async fn a_refused_token_is_an_end() {
    let server = Faults::serve(move |asked| match asked.target.starts_with("/token?") {
        true => Reply::new(200, r#"{"token":"never-good"}"#),
        false => challenge(asked.header("host").unwrap_or_default()),
    });
    let cache = tempdir().unwrap();
    let error = fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("UNAUTHORIZED: authentication required"), "{text}");
    assert!(!text.contains("never-good"), "{text}");
    assert!(error.hint().is_some_and(|hint| hint.contains("log in")));
    assert!(server.asked().len() < 12, "{} requests", server.asked().len());
}

#[tokio::test]
async fn passwords_go_to_the_token_server_and_as_basic() {
    let mut credentials = Credentials::none();
    // ada:hush
    let expected = "Basic YWRhOmh1c2g=";
    for manner in ["bearer", "basic"] {
        let image = image(&[b"one"]);
        let server = Faults::serve(move |asked| {
            let host = asked.header("host").unwrap_or_default();
            let authorization = asked.header("authorization");
            match manner {
                "basic" if authorization == Some(expected) => image.answer(asked),
                "basic" => Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#),
                _ if asked.target.starts_with("/token?") && authorization == Some(expected) => Reply::new(200, r#"{"token":"t1"}"#),
                _ if asked.target.starts_with("/token?") => Reply::new(401, ""),
                _ if bearer(asked) == Some("t1") => image.answer(asked),
                _ => challenge(host),
            }
        });
        let (cache, name) = (tempdir().unwrap(), format!("docker://{}/lab/x:1", server.host()));
        let error = fetch(&client(), cache.path(), &name).await.unwrap_err();
        assert!(error.to_string().contains("401"), "{manner}: {error}");
        let password = Credential::Password {
            user: "ada".to_owned(),
            password: "hush".to_owned(),
        };
        credentials.insert(&server.host(), password);
        fetch_with(&client(), cache.path(), &name, &credentials, TagPolicy::Ask)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post_or_by_get() {
    for oauth in [true, false] {
        let image = image(&[b"one"]);
        let server = Faults::serve(move |asked| {
            let host = asked.header("host").unwrap_or_default();
            let post =
                asked.method == "POST" && asked.body.contains("grant_type=refresh_token") && asked.body.contains("refresh_token=hush");
            match bearer(asked) {
                _ if asked.target == "/token" && oauth && post => Reply::new(200, r#"{"access_token":"t1"}"#),
                _ if asked.target == "/token" => Reply::new(404, ""),
                _ if asked.target.starts_with("/token?") && !oauth => Reply::new(200, r#"{"token":"t1"}"#),
                Some("t1") => image.answer(asked),
                _ => challenge(host),
            }
        });
        let mut credentials = Credentials::none();
        credentials.insert(&server.host(), Credential::IdentityToken("hush".to_owned()));
        let (cache, name) = (tempdir().unwrap(), format!("docker://{}/lab/x:1", server.host()));
        fetch_with(&client(), cache.path(), &name, &credentials, TagPolicy::Ask)
            .await
            .unwrap();
        assert_eq!(server.asked().iter().filter(|asked| asked.method == "POST").count(), 1);
    }
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_no_authorization() {
    let image = image(&[b"one"]);
    let blobs = image.clone();
    // Object storage answers 400 to a token.
    let storage = Faults::serve(move |asked| match asked.header("authorization") {
        Some(_) => Reply::new(400, "two ways to authenticate"),
        None => blobs.answer(&Asked {
            target: asked.target.split('?').next().unwrap_or_default().to_owned(),
            ..asked.clone()
        }),
    });
    let elsewhere = storage.host();
    let server = Faults::serve(move |asked| {
        let host = asked.header("host").unwrap_or_default();
        match bearer(asked) {
            _ if asked.target.starts_with("/token?") => Reply::new(200, r#"{"token":"t1"}"#),
            Some("t1") if asked.target.contains("/blobs/") => Reply::redirect(format!("http://{elsewhere}{}?signature=hush", asked.target)),
            Some("t1") => image.answer(asked),
            _ => challenge(host),
        }
    });
    let cache = tempdir().unwrap();
    fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap();
    assert_eq!(storage.asked().len(), 2, "config and layer");
}

#[tokio::test]
async fn redirects_come_to_an_end() {
    let server = Faults::serve(|asked| Reply::redirect(format!("{}x", asked.target)));
    let cache = tempdir().unwrap();
    let error = fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("redirects more than 10 times"), "{cause}");
    // Each redirect leads to a new place; a request that was repeated counts once.
    let targets: BTreeSet<_> = server.targets("/manifests/").into_iter().collect();
    assert_eq!(targets.len(), 11, "the first request and ten more");
    let server = Faults::serve(|_| Reply::redirect("file:///etc/passwd"));
    let error = fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap_err();
    assert!(format!("{error:?}").contains("Redirect"), "{error:?}");
}

#[tokio::test]
async fn mirrors_are_asked_in_turn_then_the_registry() {
    let image = image(&[b"one", b"two"]);
    let (whole, half, missing) = (image.clone(), image.clone(), image.layers[1].to_string());
    let origin = Faults::serve(move |asked| whole.answer(asked));
    let mirror = Faults::serve(move |asked| match asked.target.ends_with(&missing) {
        true => Reply::new(404, ""),
        false => half.answer(&Asked {
            target: asked.target.trim_start_matches("/hub").to_owned(),
            ..asked.clone()
        }),
    });
    let mut options = options();
    let settings = RegistryOptions {
        mirrors: vec!["http://127.0.0.1:1".to_owned(), mirror.url("/hub/")],
        http: true,
        ..RegistryOptions::default()
    };
    options.registries.insert(origin.host(), settings);
    let cache = tempdir().unwrap();
    let name = format!("docker://{}/lab/x:1", origin.host());
    fetch(&Client::new(options).unwrap(), cache.path(), &name).await.unwrap();
    assert_eq!(mirror.targets("/hub/v2/lab/x/").len(), 4, "{:?}", mirror.targets(""));
    assert_eq!(origin.targets(""), [format!("/v2/lab/x/blobs/{}", image.layers[1])]);
}

#[tokio::test]
async fn foreign_layers_come_from_their_urls_without_credentials() {
    let plain = image(&[b"foreign"]);
    let layer = plain.layers[0].to_string();
    let elsewhere = Faults::serve(|asked| match asked.header("authorization") {
        None => Reply::file(b"foreign", asked),
        Some(_) => Reply::new(400, ""),
    });
    let url = elsewhere.url("/layer");
    let mut foreign = plain.clone();
    let mut manifest: serde_json::Value = serde_json::from_slice(&foreign.blobs[&foreign.root.to_string()]).unwrap();
    manifest["layers"][0]["urls"] = json!(["ftp://x/y", url]);
    let bytes = manifest.to_string().into_bytes();
    foreign.root = dvrun::oci::Digest::sha256(&bytes);
    foreign.blobs.insert(foreign.root.to_string(), bytes);
    foreign.blobs.remove(&layer);
    let server = Faults::serve(move |asked| match asked.header("authorization") {
        Some(_) => foreign.answer(asked),
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic"),
    });
    let mut credentials = Credentials::none();
    let password = Credential::Password {
        user: "ada".to_owned(),
        password: "hush".to_owned(),
    };
    credentials.insert(&server.host(), password);
    let (cache, name) = (tempdir().unwrap(), format!("docker://{}/lab/x:1", server.host()));
    let (_, pulled) = fetch_with(&client(), cache.path(), &name, &credentials, TagPolicy::Ask)
        .await
        .unwrap();
    assert_eq!(std::fs::read(&pulled.layers[0]).unwrap(), b"foreign");
    assert_eq!(elsewhere.asked().len(), 1);
}

#[tokio::test]
async fn the_challenge_that_can_be_met_is_met() {
    // Negotiate and Basic first; anonymous as one is, only Bearer will do.
    let image = image(&[b"one"]);
    let server = Faults::serve(move |asked| {
        let host = asked.header("host").unwrap_or_default();
        match bearer(asked) {
            _ if asked.target.starts_with("/token") => Reply::new(200, r#"{"token":"t1"}"#),
            Some("t1") => image.answer(asked),
            _ => Reply::new(401, "").with("WWW-Authenticate", "Negotiate").with(
                "WWW-Authenticate",
                format!(r#"Basic realm="x", Bearer realm="http://{host}/token""#),
            ),
        }
    });
    let cache = tempdir().unwrap();
    fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap();
    // No scope in the challenge: what is wanted is asked for.
    assert_eq!(server.targets("/token"), ["/token?scope=repository%3Alab%2Fx%3Apull"]);
}

#[tokio::test]
async fn a_scope_that_is_too_small_is_asked_for_anew() {
    let image = image(&[b"one"]);
    let server = Faults::serve(move |asked| {
        let host = asked.header("host").unwrap_or_default();
        let ask = |status: u16, more: &str| {
            Reply::new(status, "").with("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token",{more}"#))
        };
        match bearer(asked) {
            // The newest scope first: some servers read only one.
            _ if asked.target.ends_with("scope=large&scope=small") => Reply::new(200, r#"{"token":"large"}"#),
            _ if asked.target.ends_with("scope=small") => Reply::new(200, r#"{"token":"small"}"#),
            _ if asked.target.starts_with("/token") => Reply::new(400, ""),
            Some("large") => image.answer(asked),
            Some("small") => ask(403, r#"error="insufficient_scope",scope="large""#),
            _ => ask(401, r#"scope="small""#),
        }
    });
    let cache = tempdir().unwrap();
    fetch(&client(), cache.path(), &format!("docker://{}/lab/x:1", server.host()))
        .await
        .unwrap();
    assert_eq!(server.targets("/token").len(), 2);
}

#[tokio::test]
async fn a_proxy_is_gone_through_but_not_for_its_exceptions() {
    let image = image(&[b"one"]);
    // A proxy is asked for whole URLs.
    let proxy = Faults::serve(move |asked| match asked.target.strip_prefix("http://registry.invalid") {
        Some(path) => image.answer(&Asked {
            target: path.to_owned(),
            ..asked.clone()
        }),
        None => Reply::new(502, ""),
    });
    let mut options = options();
    options.proxy.http = Some(proxy.url(""));
    let plain = RegistryOptions {
        http: true,
        ..RegistryOptions::default()
    };
    options.registries.insert("registry.invalid".to_owned(), plain);
    let (cache, name) = (tempdir().unwrap(), "docker://registry.invalid/lab/x:1");
    fetch(&Client::new(options.clone()).unwrap(), cache.path(), name).await.unwrap();
    let through = proxy.asked().len();
    options.proxy.none_for = Some("registry.invalid".to_owned());
    options.attempts = 1;
    let cache = tempdir().unwrap();
    fetch(&Client::new(options).unwrap(), cache.path(), name).await.unwrap_err();
    assert_eq!(proxy.asked().len(), through);
}
