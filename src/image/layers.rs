//! All layers of an image, in whatever order they arrive.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::{ImageError, at};
use super::layer::{Indexed, LayerBlob, index};
use super::limits::{Budget, Limits};
use super::merge::merge;
use super::spool::Spool;
use super::tree::{Body, Tree};

/// Layers being read on rayon's threads. Dropped before [`Layers::finish`], it stops them.
pub struct Layers {
    shared: Arc<Shared>,
    count: usize,
    sender: Sender<Outcome>,
    /// In a mutex so that layers may be added from several threads.
    receiver: Mutex<Receiver<Outcome>>,
}

/// A layer's index and digest, and what came of it.
type Outcome = (usize, String, Result<Indexed, ImageError>);

struct Shared {
    scratch: PathBuf,
    budget: Budget,
    cancelled: AtomicBool,
}

/// An image as one tree, with the spooled layers that its bodies lie in.
pub struct Merged {
    pub tree: Tree,
    /// What the bodies lie in; uncompressed layers, lowest first: [`super::Body::layer`] is an index into it.
    pub(super) spools: Vec<Spool>,
}

impl Merged {
    /// Bytes of a body from an offset of its layer on.
    pub(super) fn read_exact_at(&self, body: &Body, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let spool = self.spools.get(body.layer as usize).ok_or(io::ErrorKind::NotFound)?;
        spool.read_exact_at(bytes, offset)
    }
}

impl Layers {
    /// For an image of `count` layers. Uncompressed layers are spooled to unnamed files in `scratch`, which must exist.
    pub fn new(count: usize, scratch: &Path, limits: Limits) -> Layers {
        let (sender, receiver) = channel();
        Layers {
            shared: Arc::new(Shared {
                scratch: scratch.to_owned(),
                budget: Budget::new(limits),
                cancelled: AtomicBool::new(false),
            }),
            count,
            sender,
            receiver: Mutex::new(receiver),
        }
    }

    /// Opens layer `index` (0 is the lowest), starts reading it, and returns.
    pub fn add(&self, index: usize, blob: LayerBlob) {
        let shared = Arc::clone(&self.shared);
        let sender = self.sender.clone();
        // Now: the file may be about to get another name.
        let file = File::open(&blob.path).map_err(at("open", &blob.path));
        rayon::spawn(move || {
            let result = file.and_then(|file| self::index(&blob, file, &shared.scratch, &shared.budget, &shared.cancelled));
            if result.is_err() {
                shared.cancelled.store(true, Ordering::Relaxed);
            }
            // Nobody listens any more when `Layers` was dropped: then the result is not wanted.
            if sender.send((index, blob.digest.to_string(), result)).is_err() {
                shared.cancelled.store(true, Ordering::Relaxed);
            }
        });
    }

    /// Waits for all layers and merges them. Not to be called on one of rayon's threads, which it waits for.
    ///
    /// # Errors
    /// The first layer's that failed, or that a layer was never added.
    pub fn finish(self) -> Result<Merged, ImageError> {
        let mut layers: Vec<Option<(String, Indexed)>> = Vec::new();
        layers.resize_with(self.count, || None);
        let mut failure = None;
        let (silent, _) = channel();
        let mut this = self;
        // The last sender is gone when the last layer has been read.
        this.sender = silent;
        let receiver = this.receiver.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (index, digest, result) in receiver.iter() {
            match result {
                Ok(indexed) => match layers.get_mut(index) {
                    Some(slot) => *slot = Some((digest, indexed)),
                    None => return Err(ImageError::Missing { index, count: this.count }),
                },
                Err(ImageError::Cancelled { .. }) if failure.is_some() => {}
                Err(error) if matches!(failure, None | Some(ImageError::Cancelled { .. })) => failure = Some(error),
                Err(_) => {}
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let mut changes = Vec::with_capacity(layers.len());
        let mut spools = Vec::with_capacity(layers.len());
        let count = layers.len();
        for (index, layer) in layers.into_iter().enumerate() {
            let (digest, indexed) = layer.ok_or(ImageError::Missing { index, count })?;
            changes.push((digest, indexed.changes));
            spools.push(Spool::Archive(indexed.spool));
        }
        let tree = merge(changes, &this.shared.budget)?;
        Ok(Merged { tree, spools })
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
    }
}
