//! An image as laboratories have them: five layers of programs, libraries and data of this machine, and a reference genome's like.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use dvrun::oci::Digest;
use rayon::prelude::*;
use serde_json::{Value, json};
use walkdir::WalkDir;

/// An OCI layout on disk.
pub struct Image {
    pub layout: PathBuf,
    /// Blobs, gzip.
    pub layers: Vec<PathBuf>,
    pub unpacked: u64,
    pub packed: u64,
    pub files: u64,
}

/// Where layers are taken from, and how much of the whole each is, in hundredths; the second gives two layers.
const SOURCES: [(&str, u64); 3] = [("/usr/bin", 18), ("/usr/lib", 36), ("/usr/share", 24)];
/// The rest is generated.
const GENERATED: u64 = 22;

/// The image of about `megabytes`, made once.
pub fn build(folder: &Path, megabytes: u64) -> Image {
    let layout = folder.join(format!("image-{megabytes}"));
    if !layout.join("index.json").exists() {
        eprintln!("building the image in {}", layout.display());
        make(&layout, megabytes * 1_000_000);
    }
    let note: Value = serde_json::from_slice(&fs::read(layout.join("note.json")).expect("made with the image")).expect("JSON");
    let layers = note["layers"].as_array().expect("a list").iter();
    let layers: Vec<PathBuf> = layers
        .map(|name| layout.join("blobs/sha256").join(name.as_str().expect("a name")))
        .collect();
    let size = |path: &PathBuf| fs::metadata(path).expect("the layout is whole").len();
    Image {
        packed: layers.iter().map(size).sum(),
        layers,
        layout,
        unpacked: note["unpacked"].as_u64().expect("a number"),
        files: note["files"].as_u64().expect("a number"),
    }
}

fn make(layout: &Path, bytes: u64) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("target is writable");
    let [programs, libraries, shared] = SOURCES.map(|(source, share)| (Some(source), bytes / 100 * share));
    let half = libraries.1 / 2;
    let plans: [(Option<&str>, u64, u64); 5] = [
        (programs.0, 0, programs.1),
        (libraries.0, 0, half),
        // From where the one before ended.
        (libraries.0, half, half),
        (shared.0, 0, shared.1),
        (None, 0, bytes / 100 * GENERATED),
    ];
    let made: Vec<(Digest, Digest, u64, u64, u64)> = plans
        .par_iter()
        .map(|&(source, skip, length)| {
            let (tar, files) = match source {
                Some(source) => tree(Path::new(source), skip, length),
                None => generated(length),
            };
            let diff_id = Digest::sha256(&tar);
            let unpacked = tar.len() as u64;
            let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
            let mut packed = vec![0; compressor.gzip_compress_bound(tar.len())];
            let length = compressor.gzip_compress(&tar, &mut packed).expect("the bound holds");
            packed.truncate(length);
            let digest = Digest::sha256(&packed);
            fs::write(blobs.join(digest.hex()), &packed).expect("the disk has room");
            (digest, diff_id, packed.len() as u64, unpacked, files)
        })
        .collect();
    let put = |value: &Value| {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        fs::write(blobs.join(digest.hex()), &bytes).expect("the disk has room");
        (digest, bytes.len())
    };
    let (config, config_size) = put(&json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": made.iter().map(|layer| &layer.1).collect::<Vec<_>>()},
    }));
    let layers: Vec<Value> = made
        .iter()
        .map(|(digest, _, size, _, _)| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}))
        .collect();
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let (root, root_size) = put(&json!({
        "schemaVersion": 2, "mediaType": manifest,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": layers,
    }));
    let write = |name: &str, value: Value| fs::write(layout.join(name), value.to_string()).expect("the disk has room");
    write(
        "note.json",
        json!({
            "layers": made.iter().map(|layer| layer.0.hex()).collect::<Vec<_>>(),
            "unpacked": made.iter().map(|layer| layer.3).sum::<u64>(),
            "files": made.iter().map(|layer| layer.4).sum::<u64>(),
        }),
    );
    write("oci-layout", json!({"imageLayoutVersion": "1.0.0"}));
    // Last: it says that the image is whole.
    write(
        "index.json",
        json!({"schemaVersion": 2, "manifests": [{
            "mediaType": manifest, "digest": root, "size": root_size,
            "annotations": {"org.opencontainers.image.ref.name": "1"},
        }]}),
    );
}

/// Regular files and links below `source`, from `skip` bytes on, until `length` bytes are full.
fn tree(source: &Path, skip: u64, length: u64) -> (Vec<u8>, u64) {
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    let (mut seen, mut files) = (0, 0);
    let walk = WalkDir::new(source).same_file_system(true).sort_by_file_name();
    for entry in walk.into_iter().filter_map(Result::ok) {
        let Ok(meta) = entry.metadata() else { continue };
        let size = if meta.is_file() { meta.len() } else { 0 };
        seen += size;
        // No single file is to be a whole layer.
        if seen <= skip || size > 100_000_000 || !(meta.is_file() || meta.is_symlink()) {
            continue;
        }
        if seen > skip + length {
            break;
        }
        let name = entry.path().strip_prefix("/").expect("absolute");
        // What cannot be read by this user is left out.
        if builder.append_path_with_name(entry.path(), name).is_ok() {
            files += 1;
        }
    }
    (builder.into_inner().expect("memory is writable"), files)
}

/// Sequence data as text, packed data, and very many small files.
fn generated(length: u64) -> (Vec<u8>, u64) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut random = fastrand::Rng::with_seed(7);
    let mut files = 0;
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, bytes).expect("memory is writable");
        files += 1;
    };
    let large = usize::try_from(length / 4).expect("it fits in memory");
    let mut text = Vec::with_capacity(large);
    while text.len() < large {
        let line: Vec<u8> = (0..60).map(|_| b"ACGT"[random.usize(..4)]).collect();
        text.extend(&line);
        text.push(b'\n');
    }
    add("opt/reference/genome.fa".into(), &text);
    let mut noise = vec![0; large];
    random.fill(&mut noise);
    add("opt/model/weights.bin".into(), &noise);
    let words: Vec<String> = (0..2000)
        .map(|_| (0..random.usize(2..10)).map(|_| random.lowercase()).collect())
        .collect();
    let mut written = 2 * large as u64;
    let mut number = 0;
    while written < length {
        let size = random.usize(200..30_000);
        let mut script = String::with_capacity(size + 16);
        while script.len() < size {
            script += &words[random.usize(..words.len())];
            script.push(if random.u8(..8) == 0 { '\n' } else { ' ' });
        }
        add(
            format!("opt/lib/python/package{}/module{number}.py", number / 200),
            script.as_bytes(),
        );
        number += 1;
        written += size as u64;
    }
    (builder.into_inner().expect("memory is writable"), files)
}

/// A layer as it is packed.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
