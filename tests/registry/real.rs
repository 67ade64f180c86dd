//! The real `docker-registry`, filled by skopeo; and layouts on disk.

use std::fs;
use std::process::Command;
use std::sync::Mutex;

use dvrun::net::silent;
use dvrun::oci::Platform;
use dvrun::registry::{Credentials, RegistryError, Session, TagPolicy, config, pull, resolve, tags};
use dvrun::store::Store;
use serde_json::json;
use tempfile::tempdir;

use super::{HOUR, amd64, client, fetch, fetch_with, source};
use crate::support::faults::{Faults, Reply};
use crate::support::image::{gz, image, image_for, index};
use crate::support::{Registry, finish, lane};

#[tokio::test]
async fn what_was_pushed_comes_back_in_every_format() {
    let Some(registry) = Registry::start() else { return };
    let dir = tempdir().unwrap();
    let layers = [gz(b"lower"), gz(&[7; 300_000]), gz(b"upper")];
    let image = image(&layers.each_ref().map(Vec::as_slice));
    image.write(dir.path(), "x");
    registry.push_oci(dir.path(), "x", "lab/oci:1");
    finish(
        Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                "--insecure-policy",
                "--format=v2s2",
            ])
            .arg(format!("docker://{}/lab/oci:1", registry.host()))
            .arg(format!("docker://{}/lab/v2s2:1", registry.host())),
    )
    .ok();
    for name in ["oci:1", "v2s2:1"] {
        let cache = tempdir().unwrap();
        let (resolved, pulled) = fetch(&client(), cache.path(), &format!("docker://{}/lab/{name}", registry.host()))
            .await
            .unwrap();
        let got: Vec<_> = pulled.layers.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(got == layers, "{name}: other bytes");
        assert_eq!(pulled.config.config.env, ["A=1"], "{name}");
        assert_eq!(dvrun::oci::Digest::sha256(&resolved.manifest), resolved.digest, "{name}");
        if name == "oci:1" {
            assert_eq!(resolved.digest, image.root);
        }
        // By digest, and then without the network.
        let pinned = format!(
            "docker://{}/lab/{}@{}",
            registry.host(),
            name.trim_end_matches(":1"),
            resolved.digest
        );
        let (again, _) = fetch(&client(), cache.path(), &pinned).await.unwrap();
        assert_eq!(again.digest, resolved.digest);
        let (offline, from_store) = fetch_with(&client(), cache.path(), &pinned, &Credentials::none(), TagPolicy::Offline)
            .await
            .unwrap();
        assert_eq!((offline.digest, from_store.layers), (resolved.digest, pulled.layers));
    }
}

#[tokio::test]
async fn the_platform_is_chosen_from_an_index() {
    let Some(registry) = Registry::start() else { return };
    let dir = tempdir().unwrap();
    let (amd, arm) = (image_for("amd64", &[&gz(b"amd")]), image_for("arm64", &[&gz(b"arm")]));
    let both = index(&[
        (json!({"os": "linux", "architecture": "arm64", "variant": "v8"}), &arm),
        (json!({"os": "linux", "architecture": "amd64"}), &amd),
    ]);
    both.write(dir.path(), "x");
    finish(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--all", "--dest-tls-verify=false", "--insecure-policy"])
            .arg(format!("oci:{}:x", dir.path().display()))
            .arg(format!("docker://{}/lab/multi:1", registry.host())),
    )
    .ok();
    let (client, credentials, cache) = (client(), Credentials::none(), tempdir().unwrap());
    let store = Store::new(cache.path());
    let session = Session::new(&client, &store, &credentials, TagPolicy::Ask, &silent);
    let multi = source(&format!("docker://{}/lab/multi:1", registry.host()));
    for (platform, expected) in [("linux/amd64", &amd), ("linux/arm64", &arm)] {
        let resolved = resolve(&session, &multi, &platform.parse().unwrap()).await.unwrap();
        assert_eq!(resolved.digest, expected.root);
        let config = config(&session, &resolved).await.unwrap();
        assert_eq!(format!("linux/{}", config.architecture), platform);
        assert!(
            store.find_blob(&expected.layers[0]).is_none(),
            "looking at an image fetches no layer"
        );
    }
    let error = resolve(&session, &multi, &"linux/s390x".parse::<Platform>().unwrap())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("linux/s390x") && text.contains("linux/arm64/v8, linux/amd64"),
        "{text}"
    );
    // A single image is for what its configuration says.
    let one = source(&format!("docker://{}/lab/multi@{}", registry.host(), arm.root));
    let resolved = resolve(&session, &one, &amd64()).await.unwrap();
    let error = pull(&session, &resolved, &|_, _| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::WrongPlatform { .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_registrys_words() {
    let Some(registry) = Registry::start() else { return };
    let cache = tempdir().unwrap();
    let name = format!("docker://{}/lab/nothing:1", registry.host());
    let error = fetch(&client(), cache.path(), &name).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("MANIFEST_UNKNOWN") && text.contains(&name) && text.contains("404"),
        "{text}"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("tag")));
    let error = fetch_with(&client(), cache.path(), &name, &Credentials::none(), TagPolicy::Offline)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Offline { .. }), "{error}");
}

#[tokio::test]
async fn archives_are_read_as_skopeo_writes_them() {
    let there = Command::new("skopeo").arg("--version").output().is_ok();
    if !lane("skopeo", there) {
        return;
    }
    let dir = tempdir().unwrap();
    let layers = [gz(b"lower"), gz(b"upper")];
    image(&layers.each_ref().map(Vec::as_slice)).write(dir.path(), "x");
    let layout = format!("oci:{}:x", dir.path().display());
    let at = |scheme: &str, name: &str| format!("{scheme}:{}:{name}", dir.path().join(scheme).display());
    for (archive, plain) in [(at("oci-archive", "x"), false), (at("docker-archive", "lab/x:1"), true)] {
        finish(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", &layout, &archive])).ok();
        let cache = tempdir().unwrap();
        let (resolved, pulled) = fetch(&client(), cache.path(), &archive).await.unwrap();
        let got: Vec<_> = pulled.layers.iter().map(|path| fs::read(path).unwrap()).collect();
        if plain {
            assert_eq!(got, [b"lower", b"upper"], "docker save does not compress");
        } else {
            assert!(got == layers, "other bytes");
        }
        assert_eq!(pulled.config.config.env, ["A=1"]);
        // The tag may be left out where there is one image.
        let untagged = archive.splitn(3, ':').take(2).collect::<Vec<_>>().join(":");
        assert_eq!(fetch(&client(), cache.path(), &untagged).await.unwrap().0.digest, resolved.digest);
        let error = fetch(&client(), cache.path(), &format!("{untagged}:other")).await.unwrap_err();
        assert!(matches!(error, RegistryError::NoTag { .. }), "{error}");
        // One byte of a layer changed: found while it is read.
        let path = untagged.split_once(':').unwrap().1;
        let mut bytes = fs::read(path).unwrap();
        let needle: &[u8] = if plain { b"upper" } else { &layers[1] };
        let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
        bytes[at + 3] ^= 1;
        fs::write(path, &bytes).unwrap();
        let error = fetch(&client(), tempdir().unwrap().path(), &archive).await.unwrap_err();
        assert!(matches!(error, RegistryError::LayoutBlob { .. }), "{error}");
        fs::write(path, gz(&bytes)).unwrap();
        let error = fetch(&client(), tempdir().unwrap().path(), &archive).await.unwrap_err();
        assert!(matches!(error, RegistryError::Compressed { .. }), "{error}");
        fs::write(path, [0; 2048]).unwrap();
        let error = fetch(&client(), tempdir().unwrap().path(), &archive).await.unwrap_err();
        assert!(matches!(error, RegistryError::Archive { .. }), "{error}");
    }
}

#[tokio::test]
async fn tags_are_listed_and_near_ones_are_named() {
    let Some(registry) = Registry::start() else { return };
    let dir = tempdir().unwrap();
    image(&[&gz(b"x")]).write(dir.path(), "x");
    for tag in ["1.9.0", "1.10.0", "latest"] {
        registry.push_oci(dir.path(), "x", &format!("lab/x:{tag}"));
    }
    let (client, credentials, cache) = (client(), Credentials::none(), tempdir().unwrap());
    let store = Store::new(cache.path());
    let session = Session::new(&client, &store, &credentials, TagPolicy::Ask, &silent);
    let reference = format!("{}/lab/x", registry.host()).parse().unwrap();
    let mut listed = tags(&session, &reference).await.unwrap();
    listed.sort();
    assert_eq!(listed, ["1.10.0", "1.9.0", "latest"]);
    let error = fetch(&client, cache.path(), &format!("docker://{}/lab/x:1.10", registry.host()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("other tags, 1.10.0, 1.9.0, latest"), "{error}");
}

#[tokio::test]
async fn tags_come_page_by_page() {
    let server = Faults::serve(|asked| match asked.target.as_str() {
        "/v2/lab/x/tags/list?n=1000" => {
            Reply::new(200, r#"{"tags":["a","b"]}"#).with("Link", r#"</v2/lab/x/tags/list?last=b>; rel="next""#)
        }
        "/v2/lab/x/tags/list?last=b" => Reply::new(200, r#"{"name":"lab/x","tags":["c"]}"#),
        "/v2/lab/empty/tags/list?n=1000" => Reply::new(200, r#"{"tags":null}"#),
        _ => Reply::new(404, ""),
    });
    let (client, credentials, cache) = (client(), Credentials::none(), tempdir().unwrap());
    let store = Store::new(cache.path());
    let session = Session::new(&client, &store, &credentials, TagPolicy::Ask, &silent);
    let of = async |name: &str| tags(&session, &format!("{}/lab/{name}", server.host()).parse().unwrap()).await;
    assert_eq!(of("x").await.unwrap(), ["a", "b", "c"]);
    assert_eq!(of("empty").await.unwrap(), [""; 0]);
    of("nothing").await.unwrap_err();
}

#[tokio::test]
async fn a_page_of_tags_has_an_end() {
    let server = Faults::serve(|_| Reply::new(200, vec![b' '; 17 << 20]));
    let (client, credentials, cache) = (client(), Credentials::none(), tempdir().unwrap());
    let store = Store::new(cache.path());
    let session = Session::new(&client, &store, &credentials, TagPolicy::Ask, &silent);
    let error = tags(&session, &format!("{}/lab/long", server.host()).parse().unwrap())
        .await
        .unwrap_err();
    assert!(format!("{error:?}").contains("TooLong"), "{error:?}");
}

#[tokio::test]
async fn a_tag_is_asked_once_in_an_hour() {
    let Some(registry) = Registry::start() else { return };
    let (dir, cache) = (tempdir().unwrap(), tempdir().unwrap());
    let (old, new) = (image(&[&gz(b"old")]), image(&[&gz(b"new")]));
    let name = format!("docker://{}/lab/moving:1", registry.host());
    let push = |image: &crate::support::image::Image, folder: &str| {
        image.write(&dir.path().join(folder), "x");
        registry.push_oci(&dir.path().join(folder), "x", "lab/moving:1");
    };
    push(&old, "old");
    let digest = async |tags| {
        fetch_with(&client(), cache.path(), &name, &Credentials::none(), tags)
            .await
            .unwrap()
            .0
            .digest
    };
    assert_eq!(digest(HOUR).await, old.root);
    push(&new, "new");
    assert_eq!(digest(HOUR).await, old.root, "as it was asked");
    assert_eq!(digest(TagPolicy::Cached(std::time::Duration::ZERO)).await, new.root);
    drop(registry);
    assert_eq!(digest(HOUR).await, new.root, "without the registry");
    assert_eq!(digest(TagPolicy::Offline).await, new.root);
}

#[tokio::test]
async fn a_layout_is_used_where_it_lies() {
    let (dir, cache) = (tempdir().unwrap(), tempdir().unwrap());
    // The same layer twice: both places are told.
    let image = image(&[b"one", b"two", b"one"]);
    image.write(dir.path(), "x");
    let (client, credentials, store) = (client(), Credentials::none(), Store::new(cache.path()));
    let session = Session::new(&client, &store, &credentials, TagPolicy::Offline, &silent);
    for text in [format!("oci:{}:x", dir.path().display()), format!("oci:{}", dir.path().display())] {
        let resolved = resolve(&session, &source(&text), &amd64()).await.unwrap();
        let seen = Mutex::new(Vec::new());
        let pulled = pull(&session, &resolved, &|index, _| seen.lock().unwrap().push(index))
            .await
            .unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(pulled.digest, image.root);
        assert_eq!(fs::read(&pulled.layers[1]).unwrap(), b"two");
        assert!(pulled.layers.iter().all(|path| path.starts_with(dir.path())));
    }
    let error = resolve(&session, &source(&format!("oci:{}:y", dir.path().display())), &amd64())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("its tags are x"), "{error}");
    let resolved = resolve(&session, &source(&format!("oci:{}:x", dir.path().display())), &amd64())
        .await
        .unwrap();
    fs::write(dir.path().join("blobs/sha256").join(image.layers[1].hex()), "tw0").unwrap();
    let error = pull(&session, &resolved, &|_, _| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::LayoutBlob { .. }), "{error}");
    let error = resolve(&session, &source("oci:/nonexistent:x"), &amd64()).await.unwrap_err();
    assert!(matches!(error, RegistryError::NoLayout { .. }), "{error}");
}
