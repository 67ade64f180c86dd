//! `cargo bench --bench pull [-- MEGABYTES]`: an image of 600 MB from a real docker-registry on loopback into an OCI
//! layout, by dvrun and by skopeo in turn. Prints the times, their ratio, and the most memory that each held.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dvrun::oci::{Algorithm, Digest, Hasher};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

#[allow(dead_code, unused_imports)]
#[path = "../tests/support/mod.rs"]
mod support;

use support::{Registry, Sandbox};

const ROUNDS: usize = 5;
const MEGABYTE: u64 = 1_000_000;
/// What layers have of the whole, in percent: as images have them, few large and some small.
const SHARES: [u64; 6] = [50, 25, 12, 8, 4, 1];

fn main() {
    let size = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(600) * MEGABYTE;
    let Some(registry) = Registry::start() else { return };
    let sandbox = Sandbox::new();
    let layout = sandbox.path().join("layout");
    generate(&layout, size);
    registry.push_oci(&layout, "x", "bench/x:1");
    fs::remove_dir_all(&layout).expect("it was made here");
    let name = format!("docker://{}/bench/x:1", registry.host());
    println!("{} MB in {} layers, {ROUNDS} rounds", size / MEGABYTE, SHARES.len());

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (one, other) = (
            sandbox.work().join(format!("dvrun-{round}")),
            sandbox.work().join(format!("skopeo-{round}")),
        );
        let mut dvrun = sandbox.dvrun();
        dvrun.args(["pull", "--quiet", "--format", "oci", &name, "-o"]).arg(&one);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--quiet", "--src-tls-verify=false", "--insecure-policy", &name]);
        skopeo.arg(format!("oci:{}:1", other.display()));
        // In turn, so that neither always finds the other's traces in memory.
        if round % 2 == 0 {
            ours.push(measure(dvrun));
            theirs.push(measure(skopeo));
        } else {
            theirs.push(measure(skopeo));
            ours.push(measure(dvrun));
        }
        same(&one, &other);
        for folder in [one, other, sandbox.cache().join("v1")] {
            fs::remove_dir_all(&folder).expect("it was made here");
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("dvrun   {:6.2} s  {:5} MB", ours.0.as_secs_f64(), ours.1 / MEGABYTE);
    println!("skopeo  {:6.2} s  {:5} MB", theirs.0.as_secs_f64(), theirs.1 / MEGABYTE);
    println!("ratio   {:6.2}", ours.0.as_secs_f64() / theirs.0.as_secs_f64());
}

/// Wall time, and the largest resident set in bytes.
fn measure(mut command: Command) -> (Duration, u64) {
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = loop {
        // Gone, or without memory already: what was seen before counts.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(kib.unwrap_or_default() * 1024);
        if let Some(ended) = child.try_wait().expect("the child is ours to wait for") {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let took = begin.elapsed();
    assert!(ended.success(), "{command:?} failed: {ended}");
    (took, most)
}

/// The median time, and the most memory of all.
fn median(mut runs: Vec<(Duration, u64)>) -> (Duration, u64) {
    let most = runs.iter().map(|(_, memory)| *memory).max().unwrap_or_default();
    runs.sort_unstable();
    (runs[runs.len() / 2].0, most)
}

/// Both have the same blobs.
fn same(one: &Path, other: &Path) {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir.join("blobs/sha256")).expect("a layout has blobs");
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(one), names(other));
}

/// An image of random bytes, compressed in name only: nothing can make them smaller.
fn generate(layout: &Path, size: u64) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the sandbox is writable");
    let keep = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        fs::write(blobs.join(digest.hex()), bytes).expect("the sandbox is writable");
        json!({"digest": digest, "size": bytes.len()})
    };
    let mut dice = fastrand::Rng::with_seed(1);
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for share in SHARES {
        let file = blobs.join("new");
        let out = BufWriter::new(File::create(&file).expect("the sandbox is writable"));
        let mut gzip = GzEncoder::new(Both(out, Hasher::new(Algorithm::Sha256), 0), Compression::none());
        let mut plain = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; 1 << 20];
        let mut left = usize::try_from(size * share / 100).expect("it fits into memory's addresses");
        while left > 0 {
            let part = left.min(buffer.len());
            dice.fill(&mut buffer[..part]);
            plain.update(&buffer[..part]);
            gzip.write_all(&buffer[..part]).expect("the sandbox is writable");
            left -= part;
        }
        let Both(mut out, hasher, length) = gzip.finish().expect("the sandbox is writable");
        out.flush().expect("the sandbox is writable");
        let digest = hasher.finish();
        fs::rename(&file, blobs.join(digest.hex())).expect("the sandbox is writable");
        diff_ids.push(plain.finish());
        layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": length}));
    }
    let config = json!({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let described = |media_type: &str, document: &Value| {
        let mut descriptor = keep(document.to_string().as_bytes());
        descriptor["mediaType"] = json!(media_type);
        descriptor
    };
    let config = described("application/vnd.oci.image.config.v1+json", &config);
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers});
    let mut entry = described(manifest_type, &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "x"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(layout.join("index.json"), index.to_string()).expect("the sandbox is writable");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the sandbox is writable");
}

/// Writes, hashes and counts.
struct Both(BufWriter<File>, Hasher, u64);

impl Write for Both {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.1.update(&bytes[..written]);
        self.2 += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
