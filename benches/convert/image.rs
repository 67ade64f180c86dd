//! Images to convert, each made once and kept: of Debian's and PyPI's packages, or of generated content in any size.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use dvrun::oci::{Algorithm, Digest, Hasher};
use flate2::Compression;
use flate2::write::GzEncoder;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::generated;

/// An OCI layout on disk, its tag `1`.
pub struct Image {
    pub layout: PathBuf,
    /// Blobs, gzip.
    pub layers: Vec<PathBuf>,
    pub unpacked: u64,
    pub packed: u64,
    pub files: u64,
}

const LAYERS: usize = 5;

/// About 2 GB of programs, libraries and Python packages. It needs a network when it is made, and none after that.
pub fn of_packages(folder: &Path) -> Image {
    let layout = folder.join("image-packages");
    if !layout.join("index.json").exists() {
        eprintln!("building the image in {} from packages of Debian and PyPI", layout.display());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/convert/layers.sh");
        let work = folder.join("packages");
        let made = Command::new("bash").arg(script).arg(&work).status().expect("there is a shell");
        assert!(made.success(), "layers.sh: {made}");
        let tars: Vec<PathBuf> = (1..=LAYERS).map(|number| work.join(format!("layer-{number}.tar"))).collect();
        // As `docker push` and `gzip` do.
        make(&layout, Compression::default(), |number, layer| {
            let mut archive = tar::Archive::new(File::open(&tars[number])?);
            let files = archive.entries_with_seek()?.count() as u64;
            io::copy(&mut BufReader::with_capacity(1 << 20, File::open(&tars[number])?), layer)?;
            Ok(files)
        });
        fs::remove_dir_all(&work).expect("it was read");
    }
    open(layout)
}

/// `megabytes` of content of the same kind whatever the size, the same in every run.
pub fn of_size(folder: &Path, megabytes: u64) -> Image {
    let layout = folder.join(format!("image-generated-{megabytes}"));
    if !layout.join("index.json").exists() {
        eprintln!("generating the image in {}", layout.display());
        let bytes = megabytes * 1_000_000 / LAYERS as u64;
        make(&layout, Compression::fast(), |number, layer| {
            generated::write(number as u64, bytes, layer)
        });
    }
    open(layout)
}

fn open(layout: PathBuf) -> Image {
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

/// A blob that is written: hashed as it is, its size known.
struct Blob {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Write for Blob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A layer that is written: what goes in is the tar archive.
pub struct Layer {
    encoder: GzEncoder<Blob>,
    hasher: Hasher,
    size: u64,
}

impl Write for Layer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Made {
    digest: Digest,
    diff_id: Digest,
    packed: u64,
    unpacked: u64,
    files: u64,
}

/// Writes the layout; `fill` writes the layer of a number and returns how many files are in it.
fn make(layout: &Path, compression: Compression, fill: impl Fn(usize, &mut Layer) -> io::Result<u64> + Sync) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("target is writable");
    let one = |number: usize| -> io::Result<Made> {
        let path = layout.join(format!("layer-{number}"));
        let blob = Blob {
            file: File::create(&path)?,
            hasher: Hasher::new(Algorithm::Sha256),
            size: 0,
        };
        let mut layer = Layer {
            encoder: GzEncoder::new(blob, compression),
            hasher: Hasher::new(Algorithm::Sha256),
            size: 0,
        };
        let files = fill(number, &mut layer)?;
        let blob = layer.encoder.finish()?;
        let digest = blob.hasher.finish();
        fs::rename(&path, blobs.join(digest.hex()))?;
        Ok(Made {
            digest,
            diff_id: layer.hasher.finish(),
            packed: blob.size,
            unpacked: layer.size,
            files,
        })
    };
    let made: io::Result<Vec<Made>> = (0..LAYERS).into_par_iter().map(one).collect();
    let made = made.expect("the disk has room");
    let put = |value: &Value| {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        fs::write(blobs.join(digest.hex()), &bytes).expect("the disk has room");
        (digest, bytes.len())
    };
    let (config, config_size) = put(&json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": made.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
        // Charliecloud takes no image without one.
        "history": made.iter().map(|_| json!({"created_by": "layers.sh"})).collect::<Vec<_>>(),
    }));
    let layers: Vec<Value> = made
        .iter()
        .map(|layer| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.digest, "size": layer.packed}))
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
            "layers": made.iter().map(|layer| layer.digest.hex()).collect::<Vec<_>>(),
            "unpacked": made.iter().map(|layer| layer.unpacked).sum::<u64>(),
            "files": made.iter().map(|layer| layer.files).sum::<u64>(),
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

/// A layer as it is packed.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
