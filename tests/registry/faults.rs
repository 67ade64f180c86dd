//! Servers that cut, stall, lie and refuse: the right bytes come in the end, or a clear error; never wrong bytes.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dvrun::net::{Client, Download, Downloaded, NetError, Options, Request, silent};
use dvrun::oci::Digest;
use tempfile::tempdir;

use super::{client, fetch, options};
use crate::support::faults::{End, Faults, Reply};
use crate::support::image::image;
use crate::support::wait_until;

/// What becomes of an honest reply.
type Spoil = fn(Reply) -> Reply;
/// Whether this is the error that it should be.
type Expected = fn(&NetError) -> bool;

const SIZE: usize = 200_000;

/// Bytes without a pattern, the same each time.
fn content() -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(1);
    (0..SIZE).map(|_| dice.u8(..)).collect()
}

/// Downloads what `server` has, with sum and size declared.
async fn get(client: &Client, server: &Faults, partial: &Path) -> Result<Downloaded, NetError> {
    let digest = Digest::sha256(&content());
    let download = Download {
        request: Request::get(server.url("/x?signature=hush").parse().unwrap()),
        what: "x",
        digest: Some(&digest),
        size: Some(SIZE as u64),
        partial,
    };
    client.download(&download, &silent).await
}

/// A server that gives one reply after the other, and then the honest one.
fn scripted(replies: Vec<Spoil>) -> Faults {
    let content = content();
    Faults::serve(move |asked| {
        let honest = Reply::file(&content, asked);
        match replies.get(asked.before) {
            Some(spoil) => spoil(honest),
            None => honest,
        }
    })
}

#[tokio::test]
async fn each_fault_ends_in_the_right_bytes() {
    let faults: [(&str, Vec<Spoil>); 9] = [
        (
            "cuts",
            vec![
                |r| r.ending(End::Cut(70_000)),
                |r| r.ending(End::Cut(1)),
                |r| r.ending(End::Cut(0)),
                |r| r.ending(End::Cut(9)),
            ],
        ),
        ("a stall", vec![|r| r.ending(End::Stall(70_000))]),
        (
            "refusals",
            vec![|_| Reply::new(503, "busy"), |_| Reply::new(429, "slowly").with("Retry-After", "0")],
        ),
        (
            "a short length",
            vec![|mut r| {
                r.body.truncate(50_000);
                r.length = Some(50_000);
                r
            }],
        ),
        (
            "a range that is not the one",
            vec![|r| r.ending(End::Cut(70_000)), |mut r| {
                r.headers = vec![("Content-Range".into(), "bytes 1-199999/200000".into())];
                r
            }],
        ),
        (
            "no range though asked",
            vec![|r| r.ending(End::Cut(70_000)), |_| Reply::new(200, content())],
        ),
        (
            "416 though asked well",
            vec![|r| r.ending(End::Cut(70_000)), |_| Reply::new(416, "")],
        ),
        (
            "a wrong byte, then a cut",
            vec![|mut r| {
                r.body[3] ^= 1;
                r.ending(End::Cut(70_000))
            }],
        ),
        (
            "chunks that end too soon",
            vec![|mut r| {
                r.length = None;
                r.ending(End::Cut(70_000))
            }],
        ),
    ];
    for (what, script) in faults {
        let dir = tempdir().unwrap();
        let partial = dir.path().join("partial");
        let server = scripted(script);
        let done = get(&client(), &server, &partial)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(done.size, SIZE as u64, "{what}");
        assert!(fs::read(&partial).unwrap() == content(), "{what}: wrong bytes");
    }
}

#[tokio::test]
async fn what_stays_wrong_is_an_error_and_keeps_nothing() {
    let faults: [(&str, Spoil, Expected); 5] = [
        (
            "a wrong byte",
            |mut r| {
                r.body[3] ^= 1;
                r
            },
            |e| matches!(e, NetError::Digest { .. }),
        ),
        (
            "more by its length",
            |mut r| {
                r.body.push(0);
                r.length = r.length.map(|n| n + 1);
                r
            },
            |e| matches!(e, NetError::TooLong { .. }),
        ),
        (
            "more in chunks",
            |mut r| {
                r.body.push(0);
                r.length = None;
                r
            },
            |e| matches!(e, NetError::TooLong { .. }),
        ),
        (
            "less, always",
            |mut r| {
                r.body.truncate(9);
                r.length = Some(9);
                r.status = 200;
                r
            },
            |e| matches!(e, NetError::Truncated { .. }),
        ),
        (
            "nothing but 500",
            |_| Reply::new(500, "no"),
            |e| e.refusal().is_some_and(|refusal| refusal.status == 500),
        ),
    ];
    for (what, spoil, expected) in faults {
        let dir = tempdir().unwrap();
        let partial = dir.path().join("partial");
        let content = content();
        let server = Faults::serve(move |asked| spoil(Reply::file(&content, asked)));
        let error = get(&client(), &server, &partial).await.unwrap_err();
        assert!(expected(&error), "{what}: {error:?}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hush"), "{what}: {text}");
        let kept = fs::read(&partial).unwrap_or_default().len();
        assert!(kept <= 9, "{what}: {kept} bytes kept");
        assert!(server.asked().len() <= 3, "{what}: {} requests", server.asked().len());
    }
}

#[tokio::test]
async fn refusals_that_are_final_are_not_repeated() {
    let dir = tempdir().unwrap();
    for status in [400, 401, 403, 404] {
        let server = Faults::serve(move |_| Reply::new(status, "no"));
        let error = get(&client(), &server, &dir.path().join("partial")).await.unwrap_err();
        assert_eq!(error.refusal().map(|refusal| refusal.status.as_u16()), Some(status));
        assert_eq!(server.asked().len(), 1);
    }
    // Nor is a wait longer than one is ready for.
    let server = Faults::serve(|_| Reply::new(429, "").with("Retry-After", "86400"));
    get(&client(), &server, &dir.path().join("partial")).await.unwrap_err();
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn nobody_there_is_said_soon() {
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let count = |event: dvrun::net::Event<'_>| {
        if matches!(event, dvrun::net::Event::Retrying { .. }) {
            tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    };
    let many = Client::new(Options { attempts: 50, ..options() }).unwrap();
    // No program listens on port 1.
    let request = Request::get("http://127.0.0.1:1/".parse().unwrap());
    let error = many.read(&request, 10, &count).await.unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("network")), "{error}");
    assert_eq!(tries.into_inner(), 2);
}

#[tokio::test]
async fn a_download_that_was_dropped_goes_on_where_it_was() {
    let dir = tempdir().unwrap();
    let partial = dir.path().join("partial");
    let stalled = scripted(vec![|r| r.ending(End::Stall(150_000))]);
    let patient = Client::new(Options {
        read_timeout: 60,
        ..options()
    })
    .unwrap();
    {
        let going = get(&patient, &stalled, &partial);
        tokio::pin!(going);
        // Polled until the bytes lie on the disk; then dropped, as a killed process drops it.
        loop {
            assert!(
                tokio::time::timeout(Duration::from_millis(5), &mut going).await.is_err(),
                "it stalls"
            );
            if fs::metadata(&partial).is_ok_and(|meta| meta.len() == 150_000) {
                break;
            }
        }
    }
    let honest = scripted(vec![]);
    get(&client(), &honest, &partial).await.unwrap();
    assert!(fs::read(&partial).unwrap() == content());
    assert_eq!(honest.asked()[0].header("range"), Some("bytes=150000-"));
    assert_eq!(stalled.bytes() + honest.bytes(), SIZE as u64, "no byte moved twice");
    // Whole already: nobody is asked.
    get(&client(), &honest, &partial).await.unwrap();
    assert_eq!(honest.asked().len(), 1);
}

#[tokio::test]
async fn without_a_checksum_only_the_same_version_is_gone_on_with() {
    let content = Arc::new(content());
    for (tag, ranges) in [("\"v1\"", 1), ("W/\"v1\"", 0)] {
        let (dir, served) = (tempdir().unwrap(), Arc::clone(&content));
        let server = Faults::serve(move |asked| {
            let reply = Reply::file(&served, asked).with("ETag", tag);
            if asked.before == 0 { reply.ending(End::Cut(70_000)) } else { reply }
        });
        let partial = dir.path().join("partial");
        fs::write(&partial, "of another run, of another file").unwrap();
        let download = Download {
            request: Request::get(server.url("/x").parse().unwrap()),
            what: "x",
            digest: None,
            size: None,
            partial: &partial,
        };
        let done = client().download(&download, &silent).await.unwrap();
        assert_eq!(done.digest, Digest::sha256(&content));
        let asked = server.asked();
        assert_eq!(asked[0].header("range"), None);
        let resumed = asked.iter().filter(|asked| asked.header("range").is_some());
        assert_eq!(resumed.clone().count(), ranges, "{tag}");
        assert!(resumed.clone().all(|asked| asked.header("if-range") == Some(tag)));
    }
}

#[tokio::test]
async fn a_hundred_schedules_never_give_wrong_bytes() {
    let content = Arc::new(content());
    let mut whole = 0;
    for seed in 0..200 {
        // The second hundred in parts.
        let client = if seed < 100 { client() } else { in_parts() };
        let (dir, served) = (tempdir().unwrap(), Arc::clone(&content));
        let server = Faults::serve(move |asked| {
            let mut dice = fastrand::Rng::with_seed(seed * 1000 + asked.before as u64);
            let mut reply = Reply::file(&served, asked);
            let somewhere = dice.usize(0..=reply.body.len());
            match dice.u32(0..14) {
                0 => reply.ending(End::Cut(somewhere)),
                1 => reply.ending(End::Cut(0)),
                2 => Reply::new(*dice.choice(&[429, 500, 502, 503]).unwrap(), "no"),
                3 => Reply::new(416, ""),
                4 => Reply::new(200, served.to_vec()),
                5 => {
                    reply.body.truncate(somewhere);
                    reply.length = Some(somewhere as u64);
                    reply
                }
                6 if !reply.body.is_empty() => {
                    let at = dice.usize(0..reply.body.len());
                    reply.body[at] ^= 1;
                    reply.ending(End::Cut(somewhere))
                }
                7 => reply.with("Content-Range", "bytes 0-9/10"),
                8 => {
                    reply.length = None;
                    reply.ending(End::Cut(somewhere))
                }
                9 => Reply::new(206, served.to_vec()).with("Content-Range", format!("bytes 0-{}/{}", SIZE - 1, SIZE)),
                _ => reply,
            }
        });
        let partial = dir.path().join("partial");
        // Killed and started again, at most thrice.
        for _ in 0..3 {
            match get(&client, &server, &partial).await {
                Ok(_) => {
                    assert!(fs::read(&partial).unwrap() == *content, "seed {seed}: wrong bytes");
                    whole += 1;
                    break;
                }
                Err(error) => assert!(!error.to_string().is_empty(), "seed {seed}"),
            }
        }
    }
    assert!(whole > 160, "only {whole} of 200 got through");
}

/// Parts of 20 KB, four at once.
fn in_parts() -> Client {
    let options = Options {
        part_bytes: 20_000,
        connections: 4,
        ..options()
    };
    Client::new(options).unwrap()
}

#[tokio::test]
async fn parts_come_at_once_as_many_as_there_may_be_connections() {
    let content = content();
    let open = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let (served, counted) = (content.clone(), Arc::clone(&open));
    let server = Faults::serve(move |asked| {
        // But the first, which is alone: each waits until four are there, or no more are to come.
        let (state, changed) = &*counted;
        if asked.before > 0 {
            let mut state = state.lock().unwrap();
            state.0 += 1;
            state.1 = state.1.max(state.0);
            changed.notify_all();
            if asked.before < 7 {
                state = changed.wait_while(state, |state| state.1 < 3).unwrap();
            }
            state.0 -= 1;
        }
        Reply::file(&served, asked)
    });
    let dir = tempdir().unwrap();
    let partial = dir.path().join("partial");
    get(&in_parts(), &server, &partial).await.unwrap();
    assert!(fs::read(&partial).unwrap() == content);
    assert_eq!((server.asked().len(), server.bytes()), (10, SIZE as u64));
    let most = open.0.lock().unwrap().1;
    assert!((3..=4).contains(&most), "{most} at once");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no table is left");
}

#[tokio::test]
async fn a_server_without_ranges_is_asked_for_the_whole() {
    for status in [200, 416] {
        let served = content();
        let server = Faults::serve(move |asked| match asked.first() {
            Some(_) if status == 416 => Reply::new(416, ""),
            _ => Reply::new(200, served.clone()),
        });
        let dir = tempdir().unwrap();
        let partial = dir.path().join("partial");
        get(&in_parts(), &server, &partial).await.unwrap();
        assert!(fs::read(&partial).unwrap() == content());
        assert!(server.asked().len() <= 3, "{} requests", server.asked().len());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn parts_that_came_are_not_asked_again() {
    let dir = tempdir().unwrap();
    let partial = dir.path().join("partial");
    // The second part never comes, of the third a half; the refusal waits until the first is there.
    let halting = |partial: &Path| {
        let (served, partial) = (content(), partial.to_owned());
        let refuse = move || {
            let first = |bytes: Vec<u8>| bytes.len() >= 20_000 && bytes[..20_000] == content()[..20_000];
            wait_until("the first part is there", Duration::from_secs(30), || {
                fs::read(&partial).is_ok_and(first)
            });
            Reply::new(404, "gone")
        };
        Faults::serve(move |asked| match asked.first() {
            Some(20_000 | 49_000) => refuse(),
            Some(40_000) => Reply::file(&served, asked).ending(End::Cut(9_000)),
            _ => Reply::file(&served, asked),
        })
    };
    let error = get(&in_parts(), &halting(&partial), &partial).await.unwrap_err();
    assert!(error.refusal().is_some(), "{error}");
    let served = content();
    let honest = Faults::serve(move |asked| Reply::file(&served, asked));
    get(&in_parts(), &honest, &partial).await.unwrap();
    assert!(fs::read(&partial).unwrap() == content());
    assert!(
        honest.asked().iter().all(|asked| asked.first() != Some(0)),
        "the first part was there"
    );
    assert!(honest.bytes() <= SIZE as u64 - 20_000);

    // A server that gives no parts goes on from what has no gap.
    let served = content();
    let partial = dir.path().join("other");
    get(&in_parts(), &halting(&partial), &partial).await.unwrap_err();
    let whole = Faults::serve(move |asked| match asked.last() {
        Some(_) => Reply::new(416, ""),
        None => Reply::file(&served, asked),
    });
    get(&in_parts(), &whole, &partial).await.unwrap();
    assert!(fs::read(&partial).unwrap() == content());
    assert_eq!(whole.asked().last().unwrap().header("range"), Some("bytes=20000-"));

    // A table that is damaged is not believed, nor what lies beside it.
    let partial = dir.path().join("third");
    get(&in_parts(), &halting(&partial), &partial).await.unwrap_err();
    let table = dir.path().join("third.parts");
    assert!(table.is_file());
    fs::write(&table, "nonsense").unwrap();
    get(&in_parts(), &honest, &partial).await.unwrap();
    assert!(fs::read(&partial).unwrap() == content());
}

#[tokio::test]
async fn two_pulls_at_once_do_the_work_once() {
    let layers: [&[u8]; 3] = [&[1; 100_000], &[2; 100_000], &[1; 100_000]];
    let image = image(&layers);
    let served = image.clone();
    let server = Faults::serve(move |asked| served.answer(asked));
    let cache = tempdir().unwrap();
    let name = format!("docker://{}/x:1", server.host());
    let (one, other) = (client(), client());
    let (one, other) = tokio::join!(fetch(&one, cache.path(), &name), fetch(&other, cache.path(), &name));
    assert_eq!(one.unwrap().1.layers, other.unwrap().1.layers);
    for digest in &image.layers {
        assert_eq!(server.targets(&digest.to_string()).len(), 1, "{digest}");
    }
}

#[tokio::test]
async fn a_registrys_wrong_blob_is_not_kept() {
    let image = image(&[b"hello"]);
    let (served, bad) = (image.clone(), image.layers[0].to_string());
    let server = Faults::serve(move |asked| match asked.target.ends_with(&bad) {
        true => Reply::new(200, "HELLO"),
        false => served.answer(asked),
    });
    let cache = tempdir().unwrap();
    let name = format!("docker://{}/x:1", server.host());
    let error = fetch(&client(), cache.path(), &name).await.unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(
        cause.contains(&Digest::sha256(b"HELLO").to_string()) && cause.contains(&image.layers[0].to_string()),
        "{cause}"
    );
    let store = dvrun::store::Store::new(cache.path());
    assert!(store.find_blob(&image.layers[0]).is_none());
    assert_eq!(fs::read_dir(store.partial()).unwrap().count(), 0);
}
