//! Data sets over HTTP and from files, into the store.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dvrun::data::{DataError, fetch, identity, place};
use dvrun::net::{Client, Options, silent};
use dvrun::oci::Digest;
use dvrun::store::Store;
use dvrun::workflow::{DataFile, DataSet, DataSource};
use tempfile::tempdir;

use crate::support::FileServer;
use crate::support::faults::{End, Faults, Reply};

fn client(mirrors: &[(&str, &str)]) -> Client {
    let options = Options {
        attempts: 3,
        backoff_ms: 1,
        read_timeout: 1,
        mirrors: mirrors.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect(),
        ..Options::default()
    };
    Client::new(options).expect("no certificate is named")
}

fn file(name: &str, url: &str, content: Option<&[u8]>) -> DataFile {
    DataFile {
        name: name.to_owned(),
        url: url.to_owned(),
        digest: content.map(Digest::sha256),
    }
}

fn files(files: &[DataFile]) -> DataSet {
    DataSet {
        source: DataSource::Files(files.to_vec()),
    }
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).map(|entries| {
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    });
    let mut names: Vec<String> = entries.unwrap_or_default();
    names.sort();
    names
}

#[tokio::test]
async fn a_set_comes_through_a_mirror_rule_and_is_whole() {
    let (remote, cache) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir(remote.path().join("model+wgs")).unwrap();
    fs::write(remote.path().join("model+wgs/reads 1.bam"), "reads").unwrap();
    fs::write(remote.path().join("ref.fa"), "ref").unwrap();
    let server = FileServer::new(remote.path());
    let client = client(&[("https://storage.googleapis.com/lab/", &server.url())]);
    let store = Store::new(cache.path());
    let set = files(&[
        file("reads.bam", "gs://lab/model+wgs/reads 1.bam", Some(b"reads")),
        file("ref.fa", "gs://lab/ref.fa", None),
    ]);
    let folder = fetch(&client, &store, &set, &silent).await.unwrap();
    assert_eq!(folder, place(&store, &set));
    assert_eq!(names(&folder), ["reads.bam", "ref.fa"]);
    assert_eq!(fs::read_to_string(folder.join("reads.bam")).unwrap(), "reads");
    let meta = fs::metadata(folder.join("ref.fa")).unwrap();
    let blob = fs::metadata(store.blob(&Digest::sha256(b"ref"))).unwrap();
    assert_eq!(
        (meta.ino(), meta.mode() & 0o777),
        (blob.ino(), 0o444),
        "a link to the blob, read-only"
    );
    let record = fs::read_to_string(folder.with_extension("json")).unwrap();
    assert!(record.contains(&Digest::sha256(b"ref").to_string()), "{record}");
    // Again, and without the server.
    let asked = server.requests().len();
    fetch(&client, &store, &set, &silent).await.unwrap();
    assert_eq!(server.requests().len(), asked);
    // Another set with the same file: not fetched again.
    let other = files(&[file("again.bam", "gs://lab/model+wgs/reads 1.bam", Some(b"reads"))]);
    let folder = fetch(&client, &store, &other, &silent).await.unwrap();
    assert_eq!(names(&folder), ["again.bam"]);
    assert_eq!(server.requests().len(), asked);
}

#[tokio::test]
async fn a_wrong_checksum_names_both_and_keeps_nothing() {
    let (remote, cache) = (tempdir().unwrap(), tempdir().unwrap());
    fs::write(remote.path().join("x"), "what came").unwrap();
    let server = FileServer::new(remote.path());
    let store = Store::new(cache.path());
    for url in [
        format!("{}x?token=hush", server.url()),
        format!("file://{}", remote.path().join("x").display()),
    ] {
        let set = files(&[file("x", &url, Some(b"what was meant"))]);
        let error = fetch(&client(&[]), &store, &set, &silent).await.unwrap_err();
        assert!(matches!(error, DataError::Checksum { .. }), "{error:?}");
        let text = error.to_string();
        for sum in [Digest::sha256(b"what came"), Digest::sha256(b"what was meant")] {
            assert!(text.contains(&sum.to_string()), "{text}");
        }
        assert!(!text.contains("hush") && error.hint().is_some());
        assert!(!place(&store, &set).exists());
        assert_eq!(names(&store.partial()), [""; 0]);
        assert!(store.find_blob(&Digest::sha256(b"what came")).is_none());
    }
}

#[tokio::test]
async fn one_file_that_fails_leaves_no_folder_and_the_rest_for_the_next_try() {
    let (remote, cache) = (tempdir().unwrap(), tempdir().unwrap());
    fs::write(remote.path().join("a"), "a").unwrap();
    let server = FileServer::new(remote.path());
    let store = Store::new(cache.path());
    let url = |name: &str| format!("{}{name}", server.url());
    let set = files(&[file("a", &url("a"), Some(b"a")), file("b", &url("b"), Some(b"b"))]);
    let error = fetch(&client(&[]), &store, &set, &silent).await.unwrap_err();
    assert!(error.to_string().contains("cannot get b"), "{error}");
    assert!(!place(&store, &set).exists());
    fs::write(remote.path().join("b"), "b").unwrap();
    let folder = fetch(&client(&[]), &store, &set, &silent).await.unwrap();
    assert_eq!(names(&folder), ["a", "b"]);
    assert_eq!(server.requests().iter().filter(|request| *request == "GET /a").count(), 1);
}

#[tokio::test]
async fn a_killed_download_goes_on_and_two_at_once_do_it_once() {
    let content = vec![5; 300_000];
    let served = content.clone();
    let server = Faults::serve(move |asked| {
        let reply = Reply::file(&served, asked);
        if asked.before == 0 {
            reply.ending(End::Cut(200_000))
        } else {
            reply
        }
    });
    let (cache, set) = (tempdir().unwrap(), files(&[file("x", &server.url("/x"), Some(&content))]));
    let store = Store::new(cache.path());
    let (client_one, client_two) = (client(&[]), client(&[]));
    let (one, two) = tokio::join!(fetch(&client_one, &store, &set, &silent), fetch(&client_two, &store, &set, &silent));
    assert_eq!(one.unwrap(), two.unwrap());
    let asked = server.asked();
    assert_eq!(asked.len(), 2, "one try, and its second half");
    assert!(asked[1].header("range").is_some());
}

#[tokio::test]
async fn archives_become_folders_and_paths_are_only_looked_at() {
    let (remote, cache) = (tempdir().unwrap(), tempdir().unwrap());
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    builder.append_data(&mut header, "model/weights", &b"12345"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    let path = remote.path().join("model.tar");
    fs::write(&path, &archive).unwrap();
    let url = format!("file://{}", path.display());
    let store = Store::new(cache.path());
    let set = DataSet {
        source: DataSource::Archive(file("model.tar", &url, Some(&archive))),
    };
    let folder = fetch(&client(&[]), &store, &set, &silent).await.unwrap();
    assert_eq!(fs::read_to_string(folder.join("model/weights")).unwrap(), "12345");
    assert_ne!(identity(&set), identity(&files(&[file("model.tar", &url, Some(&archive))])));

    let here = DataSet {
        source: DataSource::Path(remote.path().to_owned()),
    };
    assert_eq!(fetch(&client(&[]), &store, &here, &silent).await.unwrap(), remote.path());
    let gone = DataSet {
        source: DataSource::Path(remote.path().join("gone")),
    };
    let error = fetch(&client(&[]), &store, &gone, &silent).await.unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }) && error.hint().is_some(), "{error}");
    for bad in ["../x", "a/b", "", ".."] {
        let set = files(&[file(bad, &url, None)]);
        assert!(
            matches!(fetch(&client(&[]), &store, &set, &silent).await, Err(DataError::Name(_))),
            "{bad}"
        );
    }
}
