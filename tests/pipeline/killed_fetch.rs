//! SIGKILL during pull, download and conversion: the next call goes on from there, and what the store then holds is the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::slice;

use dvrun::oci::Digest;
use walkdir::WalkDir;

use crate::support::{FileServer, Registry, Running, Sandbox, Valve, assert_ordinary_user, finish, genomics, shared};

const BAM: &str = "NA12878_S1.chr20.10_10p1mb.bam";

#[test]
fn killed_during_a_pull() {
    assert_ordinary_user();
    let (Some(layout), Some(registry)) = (genomics(), Registry::start()) else {
        return;
    };
    registry.push_oci(&layout, "genomics", "lab/genomics:1.0");
    let whole = blobs_size(&layout);
    let clean = Sandbox::new();
    fetch(&clean, &image_workflow(&format!("docker://{}/lab/genomics:1.0", registry.host())));
    let expected = tree(&clean.cache());
    for percent in [1, 50, 95] {
        let sandbox = Sandbox::new();
        let valve = Valve::new(registry.port(), whole * percent / 100);
        // A reference is what it is by name: the same one each time, reached through the valve.
        sandbox.config(&mirror(registry_name(), valve.port()));
        let file = sandbox.write(
            "pipeline.yaml",
            image_workflow(&format!("docker://{}/lab/genomics:1.0", registry_name())),
        );
        let what = format!("{percent} % of the image came");
        Running::start(sandbox.dvrun().arg("fetch").arg(&file))
            .kill_when(&what, || valve.is_closed() && written(&sandbox) > valve.passed() / 2);
        let before = valve.passed();
        valve.open();
        finish(sandbox.dvrun().arg("fetch").arg(&file)).ok();
        let rest = valve.passed() - before;
        assert!(
            rest < whole - before / 4,
            "{rest} bytes of {whole} were fetched after {before} had come"
        );
        same(&tree(&sandbox.cache()), &expected);
    }
}

#[test]
fn killed_during_a_download() {
    assert_ordinary_user();
    let Some(shared) = shared() else { return };
    let folder = shared.join("data/na12878");
    let bucket = FileServer::new(&folder);
    let bam = fs::read(folder.join(BAM)).expect("the shared data are readable");
    for kib in [1, 1000, 3800] {
        let sandbox = Sandbox::new();
        let valve = Valve::new(bucket.port(), kib << 10);
        sandbox.config(&format!(
            "mirrors: {{\"https://storage.googleapis.com/deepvariant/\": \"http://127.0.0.1:{}/\"}}\n",
            valve.port()
        ));
        let file = sandbox.write("pipeline.yaml", data_workflow(&bam));
        Running::start(sandbox.dvrun().arg("fetch").arg(&file)).kill_when(&format!("{kib} KiB came"), || {
            valve.is_closed() && (kib == 1 || written(&sandbox) > valve.passed() / 2)
        });
        valve.open();
        let asked = bucket.requests().len();
        finish(sandbox.dvrun().arg("fetch").arg(&file)).ok();
        let resumed = bucket.requests()[asked..].iter().any(|request| request.contains("bytes="));
        assert!(resumed || kib == 1, "the download began anew: {:?}", &bucket.requests()[asked..]);
        assert_eq!(stored(&sandbox.cache(), BAM), slice::from_ref(&bam), "killed after {kib} KiB");
    }
}

#[test]
fn killed_during_conversion() {
    assert_ordinary_user();
    let Some(layout) = genomics() else { return };
    let workflow = image_workflow(&format!("oci:{}:genomics", layout.display()));
    let clean = Sandbox::new();
    fetch(&clean, &workflow);
    let expected = tree(&clean.cache());
    for entries in [1, 500, 3000] {
        let sandbox = Sandbox::new();
        let file = sandbox.write("pipeline.yaml", &workflow);
        let scratch = sandbox.cache().join("v1/scratch");
        let what = format!("{entries} files were unpacked");
        Running::start(sandbox.dvrun().arg("fetch").arg(&file)).kill_when(&what, || {
            WalkDir::new(&scratch).min_depth(2).into_iter().flatten().take(entries).count() == entries
        });
        finish(sandbox.dvrun().arg("fetch").arg(&file)).ok();
        same(&tree(&sandbox.cache()), &expected);
        let left = WalkDir::new(&scratch).min_depth(1).into_iter().flatten().count();
        assert_eq!(left, 0, "what the killed conversion left in {} is still there", scratch.display());
    }
}

/// Bytes that downloads have put into the store: what a socket still holds when a process is killed is nobody's. A file that comes in
/// parts is as long as its last one reaches.
fn written(sandbox: &Sandbox) -> u64 {
    let files = ["v1/partial", "v1/blobs"].map(|folder| WalkDir::new(sandbox.cache().join(folder)));
    let entries = files.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|entry| entry.is_file())
        .map(|file| file.len().min(file.blocks() * 512))
        .sum()
}

/// A name that no one resolves: what does not come through the mirror rule fails.
fn registry_name() -> &'static str {
    "registry.invalid"
}

fn mirror(host: &str, port: u16) -> String {
    format!("registries: {{\"{host}\": {{mirrors: [\"http://127.0.0.1:{port}\"]}}}}\n")
}

fn image_workflow(source: &str) -> String {
    format!(
        "version: 1\nname: fetched\nimages: {{tools: \"{source}\"}}\n\
         stages:\n  look:\n    image: tools\n    run: bcftools --version\n"
    )
}

fn data_workflow(bam: &[u8]) -> String {
    format!(
        "version: 1\nname: fetched\ndata:\n  input:\n    base: gs://deepvariant/\n    files: {{{BAM}: \"{}\"}}\n\
         stages:\n  look:\n    image: none\n    run: test -s ${{{{ data.input }}}}/{BAM}\n",
        Digest::sha256(bam)
    )
}

fn fetch(sandbox: &Sandbox, workflow: &str) {
    let file = sandbox.write("pipeline.yaml", workflow);
    finish(sandbox.dvrun().arg("fetch").arg(&file)).ok();
}

fn blobs_size(layout: &Path) -> u64 {
    let entries = WalkDir::new(layout.join("blobs")).into_iter().flatten();
    entries.map(|entry| entry.metadata().expect("the layout is readable").len()).sum()
}

/// The contents of the files called `name` in the store's data sets.
fn stored(cache: &Path, name: &str) -> Vec<Vec<u8>> {
    let entries = WalkDir::new(cache.join("v1/data")).into_iter().flatten();
    let named = entries.filter(|entry| entry.file_name() == name);
    named.map(|entry| fs::read(entry.path()).expect("the store is readable")).collect()
}

/// What the store's one converted image is made of: path → type, mode, and content or target.
fn tree(cache: &Path) -> BTreeMap<String, String> {
    let images: Vec<_> = fs::read_dir(cache.join("v1/images"))
        .expect("an image was converted")
        .flatten()
        .collect();
    assert_eq!(images.len(), 1, "one image: {images:?}");
    let root = images[0].path().join("rootfs");
    let mut found = BTreeMap::new();
    for entry in WalkDir::new(&root) {
        let entry = entry.expect("its owner can read an image");
        let (path, meta) = (entry.path(), entry.metadata().expect("it was just listed"));
        let content = if meta.is_symlink() {
            fs::read_link(path).expect("it is a link").display().to_string()
        } else if meta.is_file() {
            Digest::sha256(&fs::read(path).expect("its owner can read an image")).to_string()
        } else {
            String::new()
        };
        let name = path.strip_prefix(&root).expect("it was found below").display().to_string();
        found.insert(name, format!("{:o} {content}", meta.mode()));
    }
    found
}

#[track_caller]
fn same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>) {
    let differ = |name: &&String| found.get(*name) != expected.get(*name);
    let names: Vec<&String> = found.keys().chain(expected.keys()).filter(differ).take(10).collect();
    assert!(
        names.is_empty(),
        "the image differs from one that was never interrupted, in {names:?}"
    );
}
