//! What a registry refuses, in its own words and with what to do; waits as it asks; and how much of its words is read.

use dvrun::net::{Client, Download, Event, Options, Request, silent};
use dvrun::oci::Digest;
use dvrun::registry::RegistryError;
use serde_json::json;
use tempfile::tempdir;

use super::{client, fetch, options};
use crate::support::faults::{Asked, Faults, Reply};
use crate::support::image::{Image, image};

async fn refused(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> (RegistryError, String) {
    let server = Faults::serve(answer);
    let cache = tempdir().unwrap();
    let name = format!("docker://{}/lab/x:1", server.host());
    (fetch(&client(), cache.path(), &name).await.unwrap_err(), name)
}

#[tokio::test]
async fn each_code_is_said_with_what_to_do() {
    for (status, code, hint) in [
        (401, "UNAUTHORIZED", "dvrun login"),
        (403, "DENIED", "dvrun login"),
        (404, "NAME_UNKNOWN", "check its name"),
        (404, "MANIFEST_UNKNOWN", "the tag"),
        (429, "TOOMANYREQUESTS", "quota"),
        (503, "UNAVAILABLE", "try again later"),
    ] {
        let (error, name) = refused(move |_| {
            let body = json!({"errors": [{"code": code, "message": "these very words", "detail": {"a": 1}}]});
            Reply::new(status, body.to_string()).with("Retry-After", "86400")
        })
        .await;
        let host = name
            .trim_start_matches("docker://")
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let text = error.to_string();
        for part in [code, "these very words", &name, &host, &format!("status {status}")] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let said = error.hint().unwrap_or_default();
        assert!(said.contains(hint), "{code}: {said}");
    }
    // Something else than the specified JSON: the status has to do.
    let (error, _) = refused(|_| Reply::new(404, "<html>not here</html>")).await;
    assert!(error.to_string().ends_with("status 404") && error.hint().is_some(), "{error}");
}

/// One that would wait for a minute, were it not told better.
fn patient() -> Client {
    let options = Options {
        backoff_ms: 3_600_000,
        part_bytes: 20_000,
        // In turn: the same part is not refused twice.
        connections: 1,
        ..options()
    };
    Client::new(options).unwrap()
}

#[tokio::test]
async fn a_wait_is_as_long_as_the_server_asks() {
    let body = vec![7; 100_000];
    let digest = Digest::sha256(&body);
    // The date is long past: no wait.
    for after in ["0", "Wed, 21 Oct 2015 07:28:00 GMT"] {
        for status in [429, 503] {
            let served = body.clone();
            let server = Faults::serve(move |asked| match asked.before % 2 {
                0 => Reply::new(status, "").with("Retry-After", after),
                _ => Reply::file(&served, asked),
            });
            let said = std::sync::Mutex::new(Vec::new());
            let note = |event: Event<'_>| {
                if let Event::Retrying { after, .. } = event {
                    said.lock().unwrap().push(after.as_secs());
                }
            };
            let client = patient();
            let request = || Request::get(server.url("/x").parse().unwrap());
            client.read(&request(), 1 << 20, &note).await.unwrap();
            // As a whole, and in parts.
            for size in [None, Some(body.len() as u64)] {
                let dir = tempdir().unwrap();
                let download = Download {
                    request: request(),
                    what: "x",
                    digest: Some(&digest),
                    size,
                    partial: &dir.path().join("partial"),
                };
                client.download(&download, &note).await.unwrap();
            }
            let said = said.into_inner().unwrap();
            assert!(said.len() >= 3 && said.iter().all(|seconds| *seconds == 0), "{said:?}");
        }
    }
    // Longer than one waits: the answer is what it is.
    let server = Faults::serve(|_| Reply::new(429, "").with("Retry-After", "86400"));
    let answer = patient()
        .read(&Request::get(server.url("/x").parse().unwrap()), 10, &silent)
        .await
        .unwrap();
    assert_eq!((answer.status.as_u16(), server.asked().len()), (429, 1));
}

#[tokio::test]
async fn it_is_tried_as_often_as_is_set_and_not_more() {
    for attempts in [1, 2, 5] {
        let server = Faults::serve(|_| Reply::new(503, ""));
        let options = Options { attempts, ..options() };
        let request = Request::get(server.url("/x").parse().unwrap());
        Client::new(options).unwrap().read(&request, 10, &silent).await.unwrap();
        assert_eq!(server.asked().len(), attempts as usize);
    }
}

/// `image` with its configuration or manifest changed.
fn with_config(mut image: Image, bytes: Vec<u8>) -> Image {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.blobs[&image.root.to_string()]).unwrap();
    let digest = Digest::sha256(&bytes);
    manifest["config"]["digest"] = json!(digest);
    manifest["config"]["size"] = json!(bytes.len());
    image.blobs.insert(digest.to_string(), bytes);
    let manifest = manifest.to_string().into_bytes();
    image.root = Digest::sha256(&manifest);
    image.blobs.insert(image.root.to_string(), manifest);
    image
}

#[tokio::test]
async fn what_a_server_sends_has_an_end() {
    // A header of a megabyte.
    let (error, _) = refused(|_| Reply::new(200, "{}").with("X-Long", "x".repeat(1 << 20))).await;
    assert!(matches!(error, RegistryError::Net { .. }), "{error:?}");
    // A hundred thousand headers.
    let (error, _) = refused(|_| {
        let mut reply = Reply::new(200, "{}");
        reply.headers = (0..100_000).map(|n| (format!("X-{n}"), "x".to_owned())).collect();
        reply
    })
    .await;
    assert!(matches!(error, RegistryError::Net { .. }), "{error:?}");
    // More layers than any image has.
    let layer: &[u8] = b"x";
    let many = image(&vec![layer; 1025]);
    let (error, _) = refused(move |asked| many.answer(asked)).await;
    assert!(format!("{error:?}").contains("TooManyLayers"), "{error:?}");
    // A configuration of 17 MiB; it is not even asked for.
    let long = with_config(image(&[b"x"]), vec![b' '; 17 << 20]);
    let (error, _) = refused(move |asked| long.answer(asked)).await;
    assert!(matches!(error, RegistryError::ConfigTooLong { .. }), "{error:?}");
    let text = with_config(image(&[b"x"]), b"nonsense".to_vec());
    let (error, _) = refused(move |asked| text.answer(asked)).await;
    assert!(matches!(error, RegistryError::Config { .. }), "{error:?}");
    // A token without end.
    let (error, _) = refused(|asked| match asked.target.starts_with("/token") {
        true => Reply::new(200, format!(r#"{{"token":"{}"}}"#, "x".repeat(2 << 20))),
        false => {
            let host = asked.header("host").unwrap_or_default();
            Reply::new(401, "").with("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token""#))
        }
    })
    .await;
    assert!(format!("{error:?}").contains("TooLong"), "{error:?}");
    // Words without end: the first of them.
    let (error, _) = refused(|_| {
        let body = json!({"errors": [{"code": "DENIED", "message": "x".repeat(40_000)}]});
        Reply::new(403, body.to_string())
    })
    .await;
    assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
    // More of them than is read at all: no JSON any more.
    let (error, _) = refused(|_| {
        let body = json!({"errors": [{"code": "DENIED", "message": "x".repeat(1 << 20)}]});
        Reply::new(403, body.to_string())
    })
    .await;
    assert!(error.to_string().ends_with("status 403"), "{}", error.to_string().len());
}
