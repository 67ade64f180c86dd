//! Uploads that break: gone on with where the registry knows how far they came, begun anew where it does not.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dvrun::net::{Client, NetError, Options, Request, Upload, silent};
use dvrun::oci::Digest;
use dvrun::registry::{Credentials, Extent, RegistryError, Session, TagPolicy, push_image};
use dvrun::store::Store;
use tempfile::tempdir;

use super::{client, options, source};
use crate::support::faults::{Asked, Faults, Reply};
use crate::support::image::{Image, gz, image};
use crate::support::{Cutter, Registry, Sandbox, finish};

/// A registry in memory: what has been pushed to it, and how much of what is on its way.
#[derive(Default)]
struct Memory {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
    uploads: HashMap<String, Vec<u8>>,
}

impl Memory {
    /// As the distribution specification has it.
    fn answer(&mut self, asked: &Asked) -> Reply {
        let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let at = |id: &str, status: u16, has: usize| {
            Reply::new(status, "")
                .with("Location", format!("/v2/lab/x/blobs/uploads/{id}?state={has}"))
                .with("Range", format!("0-{}", has.saturating_sub(1)))
        };
        match (asked.method.as_str(), path.contains("/uploads/")) {
            ("POST", _) => {
                let id = format!("u{}", asked.before);
                self.uploads.insert(id.clone(), Vec::new());
                at(&id, 202, 0)
            }
            ("GET", true) => match self.uploads.get(&name) {
                Some(bytes) => at(&name, 204, bytes.len()),
                None => Reply::new(404, ""),
            },
            ("PATCH", true) => {
                let Some(bytes) = self.uploads.get_mut(&name) else {
                    return Reply::new(404, "");
                };
                let first = asked
                    .header("content-range")
                    .and_then(|range| range.split_once('-')?.0.parse().ok());
                if first.unwrap_or(0) != bytes.len() {
                    return Reply::new(416, "");
                }
                bytes.extend(&asked.bytes);
                at(&name, 202, bytes.len())
            }
            ("PUT", true) => {
                let Some(bytes) = self.uploads.remove(&name) else {
                    return Reply::new(404, "");
                };
                let digest = query.rsplit("digest=").next().unwrap_or_default().replace("%3A", ":");
                if Digest::sha256(&bytes).to_string() != digest {
                    return Reply::new(400, r#"{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}"#);
                }
                self.blobs.insert(digest, bytes);
                Reply::new(201, "")
            }
            ("HEAD", _) if self.blobs.contains_key(&name) => Reply::new(200, ""),
            ("PUT", _) => {
                self.manifests.insert(name, asked.bytes.clone());
                Reply::new(201, "")
            }
            _ => Reply::new(404, ""),
        }
    }
}

async fn push(client: &Client, image: &Image, host: &str) -> Result<Digest, RegistryError> {
    let (dir, cache) = (tempdir().unwrap(), tempdir().unwrap());
    image.write(dir.path(), "x");
    let (credentials, store) = (Credentials::none(), Store::new(cache.path()));
    let session = Session::new(client, &store, &credentials, TagPolicy::Ask, &silent);
    let from = source(&format!("oci:{}:x", dir.path().display()));
    push_image(&session, &from, &Extent::Whole, &format!("{host}/lab/x:1").parse().unwrap()).await
}

fn whole(memory: &Memory, image: &Image) {
    assert_eq!(memory.manifests["1"], image.blobs[&image.root.to_string()]);
    for (digest, bytes) in image.blobs.iter().filter(|(digest, _)| **digest != image.root.to_string()) {
        assert!(memory.blobs[digest] == *bytes, "{digest}");
    }
}

/// Random bytes, so that no two halves are the same.
fn layer(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn what_a_registry_has_is_not_sent_again() {
    let layer = layer(300_000);
    let image = image(&[&layer]);
    let memory = Arc::new(Mutex::new(Memory::default()));
    let serving = Arc::clone(&memory);
    // Of the first stream it keeps a third, of the second another, and says 503 to both.
    let server = Faults::serve(move |asked| {
        let mut memory = serving.lock().unwrap();
        if asked.method == "PATCH" && asked.bytes.len() > 150_000 {
            let mut part = asked.clone();
            part.bytes.truncate(100_000);
            memory.answer(&part);
            return Reply::new(503, "").with("Retry-After", "0");
        }
        memory.answer(asked)
    });
    assert_eq!(push(&client(), &image, &server.host()).await.unwrap(), image.root);
    whole(&memory.lock().unwrap(), &image);
    let asked = server.asked();
    let ranges: Vec<_> = asked.iter().filter_map(|asked| asked.header("content-range")).collect();
    assert_eq!(ranges, ["100000-299999", "200000-299999"]);
    let sent: usize = asked
        .iter()
        .filter(|asked| asked.method == "PATCH")
        .map(|asked| asked.bytes.len())
        .sum();
    assert!(sent < 610_000, "{sent} bytes");
}

#[tokio::test]
async fn schedules_of_faults_end_in_the_right_bytes_or_an_error() {
    let mut through = 0;
    for seed in 0..60 {
        let layers = [layer(40_000), layer(1), gz(b"small")];
        let image = image(&layers.each_ref().map(Vec::as_slice));
        let memory = Arc::new(Mutex::new(Memory::default()));
        let serving = Arc::clone(&memory);
        let server = Faults::serve(move |asked| {
            let mut dice = fastrand::Rng::with_seed(seed * 1000 + asked.before as u64);
            let mut memory = serving.lock().unwrap();
            match (dice.u32(0..12), asked.method.as_str()) {
                (0, _) => Reply::new(503, ""),
                // Done, but the answer is lost.
                (1, "PUT" | "PATCH") => {
                    memory.answer(asked);
                    Reply::new(502, "")
                }
                (2, "PATCH") => {
                    let mut part = asked.clone();
                    part.bytes.truncate(dice.usize(0..=part.bytes.len()));
                    memory.answer(&part);
                    Reply::new(500, "")
                }
                // It takes less than it was given, and says so.
                (3, "PATCH") => {
                    let mut part = asked.clone();
                    part.bytes.truncate(dice.usize(0..=part.bytes.len()));
                    memory.answer(&part)
                }
                (4, "PATCH" | "GET") => {
                    memory.uploads.clear();
                    Reply::new(404, "")
                }
                (5, "GET") => Reply::new(405, ""),
                (6, "PATCH") => Reply::new(416, ""),
                _ => memory.answer(asked),
            }
        });
        let client = Client::new(Options { attempts: 8, ..options() }).unwrap();
        match push(&client, &image, &server.host()).await {
            Ok(digest) => {
                assert_eq!(digest, image.root, "seed {seed}");
                whole(&memory.lock().unwrap(), &image);
                through += 1;
            }
            Err(error) => assert!(error.to_string().contains("127.0.0.1"), "seed {seed}: {error}"),
        }
    }
    assert!(through > 50, "only {through} of 60 got through");
}

#[tokio::test]
async fn a_refusal_that_is_final_is_said() {
    let image = image(&[b"x"]);
    let server = Faults::serve(|asked| match asked.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        _ => Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#),
    });
    let error = push(&client(), &image, &server.host()).await.unwrap_err();
    assert!(error.to_string().contains("DENIED: read only"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("dvrun login")));
    // One that does not say where; one that would have the image in the clear is the same.
    let server = Faults::serve(|asked| match asked.method.as_str() {
        "POST" => Reply::new(202, ""),
        _ => Reply::new(404, ""),
    });
    let error = push(&client(), &image, &server.host()).await.unwrap_err();
    assert!(matches!(error, RegistryError::NoUpload { .. }), "{error}");
    // Bytes that are not the ones: not again and again.
    let server = Faults::serve(|asked| match (asked.method.as_str(), asked.target.contains("digest=")) {
        ("POST", _) => Reply::new(202, "").with("Location", "/v2/lab/x/blobs/uploads/u"),
        ("PATCH", _) => Reply::new(202, ""),
        ("PUT", true) => Reply::new(400, r#"{"errors":[{"code":"DIGEST_INVALID","message":"other bytes"}]}"#),
        _ => Reply::new(404, ""),
    });
    let error = push(&client(), &image, &server.host()).await.unwrap_err();
    assert!(error.to_string().contains("DIGEST_INVALID: other bytes"), "{error}");
}

/// The storage that an upload may be sent to is not the registry: it must not see its token.
#[tokio::test]
async fn an_upload_elsewhere_carries_no_authorization() {
    let image = image(&[b"one"]);
    let storage = Faults::serve(|asked| match asked.header("authorization") {
        Some(_) => Reply::new(400, ""),
        None => Reply::new(201, ""),
    });
    let elsewhere = storage.url("/upload?signature=hush");
    let server = Faults::serve(move |asked| match (asked.header("authorization"), asked.method.as_str()) {
        _ if asked.target.starts_with("/token?") => Reply::new(200, r#"{"token":"t1"}"#),
        (None, _) => {
            let host = asked.header("host").unwrap_or_default();
            Reply::new(401, "").with(
                "WWW-Authenticate",
                format!(r#"Bearer realm="http://{host}/token",scope="repository:lab/x:pull""#),
            )
        }
        (_, "POST") => Reply::new(202, "").with("Location", elsewhere.clone()),
        (_, "PUT") => Reply::new(201, ""),
        _ => Reply::new(404, ""),
    });
    push(&client(), &image, &server.host()).await.unwrap();
    assert!(storage.asked().len() >= 2);
}

#[test]
fn a_real_registry_gets_all_through_a_line_that_breaks() {
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let layers = [gz(&layer(3_000_000)), gz(&layer(500_000))];
    let image = image(&layers.each_ref().map(Vec::as_slice));
    image.write(&sandbox.work().join("layout"), "x");
    sandbox.config("network: {backoff_ms: 10, attempts: 8}\n");
    // Each of the first five connections dies after a megabyte.
    let line = Cutter::new(registry.port(), 1_000_000, 5);
    let name = |port: u16| format!("docker://127.0.0.1:{port}/lab/x:1");
    let pushed = finish(sandbox.dvrun().args(["push", "oci:layout:x", &name(line.port())])).ok();
    pushed.complains("trying again");
    assert!(line.cuts() > 0);
    let fresh = Sandbox::new();
    finish(fresh.dvrun().args(["pull", &name(registry.port()), "--format", "oci", "-o", "out"])).ok();
    for (digest, bytes) in &image.blobs {
        let path = fresh.work().join("out/blobs/sha256").join(digest.trim_start_matches("sha256:"));
        assert!(std::fs::read(path).unwrap() == *bytes, "{digest}");
    }
}

/// Takes an upload in sixteen pieces with a pause before each, all of them longer than `read_timeout` together, or only the first.
fn slow(pieces: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || -> std::io::Result<()> {
        let (mut client, _) = listener.accept()?;
        let mut piece = vec![0; 1 << 20];
        for _ in 0..pieces {
            thread::sleep(Duration::from_millis(150));
            client.read_exact(&mut piece)?;
        }
        if pieces < 16 {
            // Held open; the thread ends with the test's process.
            loop {
                thread::park();
            }
        }
        let mut rest = [0; 4096];
        client.read(&mut rest).map(drop)?;
        client.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
    });
    port
}

#[tokio::test]
async fn a_slow_upload_is_waited_for_and_a_stalled_one_is_not() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("file");
    let size = 16 << 20;
    std::fs::write(&path, vec![7; size]).unwrap();
    let upload = Upload {
        what: "file",
        path: &path,
        part: 0..size as u64,
    };
    // A second without a byte is too long; two of them with bytes are not.
    let send = async |port: u16| {
        let mut request = Request::get(format!("http://127.0.0.1:{port}/x").parse().unwrap());
        request.method = reqwest::Method::PATCH;
        client().upload(request, &upload, 100, &silent).await
    };
    assert_eq!(send(slow(16)).await.unwrap().status.as_u16(), 202);
    let error = send(slow(1)).await.unwrap_err();
    assert!(matches!(error, NetError::Stalled { seconds: 1, .. }), "{error:?}");
}
