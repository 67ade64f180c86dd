//! From a source into the store: whole, once, and whatever becomes of the process.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use dvrun::fetch::{self, PullError};
use dvrun::image::{ImageError, LayerBlob, Layers, Limits, write_folder};
use dvrun::net::{Client, Event, Options};
use dvrun::oci::{Digest, Platform};
use dvrun::registry::{Credentials, Session, TagPolicy, resolve};
use dvrun::store::{Store, StoredImage};

use super::Bench;
use super::model::Model;
use super::seen::{assert_same, expected, names_below, on_disk};
use crate::support::layers::*;

fn stack() -> Vec<Vec<Member>> {
    vec![
        vec![folder("bin").mode(0o555), file("bin/tool", "tool").mode(0o755), file("old", "o")],
        vec![whiteout("old"), hard_link("bin/second", "bin/tool")],
        vec![],
        vec![symlink("sbin", "bin"), file("sbin/third", "3")],
    ]
}

fn write_layout(dir: &Path, layers: &[Vec<Member>]) {
    let tars: Vec<Vec<u8>> = layers.iter().map(|layer| archive(layer)).collect();
    layout(dir, "t", Packing::Gzip, &tars);
}

async fn fetch_image(store: &Store, dir: &Path, progress: &(dyn Fn(Event<'_>) + Sync)) -> Result<StoredImage, PullError> {
    fetch_source(store, &format!("oci:{}:t", dir.display()), progress).await
}

pub async fn fetch_source(store: &Store, source: &str, progress: &(dyn Fn(Event<'_>) + Sync)) -> Result<StoredImage, PullError> {
    let client = Client::new(Options::default()).expect("the defaults are right");
    let credentials = Credentials::none();
    let session = Session::new(&client, store, &credentials, TagPolicy::Ask, progress);
    let source = source.parse().expect("it is a source");
    let platform: Platform = "linux/amd64".parse().expect("it is a platform");
    let resolved = resolve(&session, &source, &platform).await.expect("the layout is whole");
    fetch::image(&session, &fetch::Found::Layers(resolved), Limits::default()).await
}

#[tokio::test]
async fn an_image_is_converted_into_the_store_once() {
    let bench = Bench::new();
    let dir = bench.path().join("layout");
    write_layout(&dir, &stack());
    let store = Store::new(&bench.path().join("cache"));
    let said = Mutex::new(Vec::new());
    let progress = |event: Event<'_>| {
        if let Event::Waiting { what } = event {
            said.lock().unwrap().push(what.to_owned());
        }
    };
    let (first, second) = tokio::join!(fetch_image(&store, &dir, &progress), fetch_image(&store, &dir, &progress));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first, second, "the second found what the first had made");
    assert_eq!(*said.lock().unwrap(), [format!("oci:{}:t", dir.display())], "one of them waited");
    assert_same(
        "stored",
        &on_disk(first.root().path()),
        &expected(&Model::of(&stack()).expect("it has a meaning")),
    );
    assert_eq!((first.info.layers.len(), first.info.files, first.info.bytes), (4, 5, 5));
    assert_eq!(first.path, store.image(&first.digest));
    assert_eq!(store.find_image(&first.digest).unwrap(), Some(first));
    assert_eq!(names_below(&store.scratch()), [""; 0]);
}

#[tokio::test]
async fn a_second_name_of_an_image_is_recorded() {
    let bench = Bench::new();
    let store = Store::new(&bench.path().join("cache"));
    for name in ["a", "b", "a"] {
        let dir = bench.path().join(name);
        write_layout(&dir, &stack());
        fetch_image(&store, &dir, &dvrun::net::silent).await.unwrap();
    }
    let images = store.images().unwrap();
    let name = |name: &str| format!("oci:{}:t", bench.path().join(name).display());
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].info.names, [name("a"), name("b")]);
}

#[tokio::test]
async fn an_image_that_cannot_be_converted_leaves_nothing() {
    let bench = Bench::new();
    let dir = bench.path().join("layout");
    write_layout(&dir, &[vec![file("a", "a")], vec![file("../evil", "e")]]);
    let store = Store::new(&bench.path().join("cache"));
    let error = fetch_image(&store, &dir, &dvrun::net::silent).await.expect_err("it is hostile");
    assert!(
        matches!(
            error,
            PullError::Image {
                source: ImageError::Entry { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert!(store.images().unwrap().is_empty());
    assert_eq!(names_below(&store.scratch()), [""; 0]);
    assert!(!bench.path().join("evil").exists() && !store.scratch().join("evil").exists());
}

/// Not a test by itself: the process that the tests below kill, at the moment that [`CHILD`] says.
#[test]
fn the_process_that_is_killed() {
    let Some(dir) = env::var_os(CHILD).map(PathBuf::from) else { return };
    let store = Store::new(&dir.join("cache"));
    let draft = store.draft_image().unwrap();
    let layers = Layers::new(1, draft.scratch(), Limits::default());
    layers.add(
        0,
        LayerBlob {
            path: dir.join("layer"),
            digest: Digest::sha256(b"layer"),
            diff_id: None,
        },
    );
    write_folder(&layers.finish().unwrap(), &draft.rootfs(), None).unwrap();
    println!("{WRITTEN}");
    std::io::stdin().read_exact(&mut [0]).expect("killed before anything comes");
}

const CHILD: &str = "DVRUN_TEST_CONVERT_IN";
const WRITTEN: &str = "all is written, nothing is published";

fn child(dir: &Path) -> Child {
    Command::new(env::current_exe().expect("a test knows its binary"))
        .args(["--exact", "image::store::the_process_that_is_killed", "--nocapture"])
        .env(CHILD, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test's own binary starts")
}

/// After the kill: something is left; the next process sweeps it and succeeds.
#[track_caller]
fn the_next_one_succeeds(dir: &Path) {
    let store = Store::new(&dir.join("cache"));
    assert!(!names_below(&store.scratch()).is_empty(), "the killed one left its scratch");
    let image = dir.join("layout");
    write_layout(&image, &stack());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stored = runtime.block_on(fetch_image(&store, &image, &dvrun::net::silent)).unwrap();
    assert_same(
        "after a kill",
        &on_disk(stored.root().path()),
        &expected(&Model::of(&stack()).expect("it has a meaning")),
    );
    assert_eq!(names_below(&store.scratch()), [""; 0], "what the killed one left is swept");
}

#[test]
fn killed_while_it_reads_a_layer() {
    let bench = Bench::new();
    // A layer that comes through a pipe can stop anywhere; a pipe holds 64 KiB, so this much is read when half is written.
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4 << 20).collect();
    let layer = Packing::Gzip.pack(&archive(&[file("noise", noise)]));
    nix::unistd::mkfifo(&bench.path().join("layer"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut child = child(bench.path());
    let mut pipe = OpenOptions::new().write(true).open(bench.path().join("layer")).unwrap();
    pipe.write_all(&layer[..layer.len() / 2]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    the_next_one_succeeds(bench.path());
}

#[test]
fn killed_when_all_is_written() {
    let bench = Bench::new();
    let layer = vec![folder("sealed").mode(0o555), file("sealed/file", "f").mode(0)];
    fs::write(bench.path().join("layer"), Packing::Gzip.pack(&archive(&layer))).unwrap();
    let mut child = child(bench.path());
    let mut said = Vec::new();
    let stdout = child.stdout.as_mut().expect("it is piped");
    while !String::from_utf8_lossy(&said).contains(WRITTEN) {
        let mut byte = [0];
        stdout.read_exact(&mut byte).expect("it says so before it ends");
        said.push(byte[0]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    the_next_one_succeeds(bench.path());
}
