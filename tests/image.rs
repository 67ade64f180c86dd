//! Layers → folders and the store: against a plain model, against umoci, and against archives made to do harm.

mod compressions;
mod extract;
mod fuzzed;
mod good;
mod hostile;
mod keeping;
mod memory;
mod model;
mod pull;
mod random;
mod seen;
mod sif;
mod squashfs;
mod store;

use std::path::{Path, PathBuf};

use dvrun::image::{Converted, ImageError, LayerBlob, Layers, Limits, Merged, convert_folder};
use dvrun::store::remove_tree;
use tempfile::TempDir;

use crate::support::layers::{Member, Packing, archive, blob};

/// A folder of a test's own: blobs, scratch, and what is converted.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::Builder::new()
            .prefix("dvrun-test-")
            .tempdir()
            .expect("the temporary folder is writable");
        for name in ["blobs", "scratch"] {
            std::fs::create_dir(dir.path().join(name)).expect("it is empty");
        }
        Bench { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    fn blobs(&self, packing: Packing, tars: &[Vec<u8>]) -> Vec<LayerBlob> {
        tars.iter().map(|tar| blob(&self.dir.path().join("blobs"), packing, tar)).collect()
    }

    /// Converts layers, lowest first, to [`Bench::out`].
    fn convert(&self, packing: Packing, layers: &[Vec<Member>]) -> Result<Converted, ImageError> {
        let tars: Vec<Vec<u8>> = layers.iter().map(|layer| archive(layer)).collect();
        self.convert_tars(packing, &tars, Limits::default())
    }

    /// Reads layers, lowest first, and merges them.
    fn merge(&self, packing: Packing, layers: &[Vec<Member>]) -> Result<Merged, ImageError> {
        let tars: Vec<Vec<u8>> = layers.iter().map(|layer| archive(layer)).collect();
        let reading = Layers::new(tars.len(), &self.scratch(), Limits::default());
        for (index, blob) in self.blobs(packing, &tars).into_iter().enumerate() {
            reading.add(index, blob);
        }
        reading.finish()
    }

    fn convert_tars(&self, packing: Packing, tars: &[Vec<u8>], limits: Limits) -> Result<Converted, ImageError> {
        remove_tree(&self.out()).expect("the test owns it");
        convert_folder(&self.blobs(packing, tars), &self.scratch(), &self.out(), limits)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(self.dir.path()) {
            eprintln!("left behind: {}: {error}", self.dir.path().display());
        }
    }
}
