//! How much an image may ask for, and the count of what was asked.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::Excess;

/// Bounds on one image, all layers together. A layer that asks for more is an error before the memory or the disk is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of all layers.
    pub entries: u64,
    /// Bytes of all layers, uncompressed: what the scratch folder must hold.
    pub unpacked_bytes: u64,
    /// Memory of the indexes, in bytes, roughly counted.
    pub index_bytes: u64,
    /// Bytes of one path or link target (the kernel's `PATH_MAX`).
    pub path_bytes: u64,
    /// Bytes of one PAX header, extended attributes included.
    pub pax_bytes: u64,
}

impl Default for Limits {
    /// Ten million entries, 2 TiB, 2 GiB of index.
    fn default() -> Limits {
        Limits {
            entries: 10_000_000,
            unpacked_bytes: 2 << 40,
            index_bytes: 2 << 30,
            path_bytes: 4096,
            pax_bytes: 1 << 20,
        }
    }
}

/// What the layers of one image have used, counted by all threads.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) limits: Limits,
    entries: AtomicU64,
    unpacked: AtomicU64,
    index: AtomicU64,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Budget {
        Budget {
            limits,
            entries: AtomicU64::new(0),
            unpacked: AtomicU64::new(0),
            index: AtomicU64::new(0),
        }
    }

    pub(super) fn entry(&self, index_bytes: u64) -> Result<(), Excess> {
        spend(&self.entries, 1, self.limits.entries, "entries")?;
        self.index(index_bytes)
    }

    pub(super) fn index(&self, bytes: u64) -> Result<(), Excess> {
        spend(&self.index, bytes, self.limits.index_bytes, "bytes of index")
    }

    pub(super) fn unpacked(&self, bytes: u64) -> Result<(), Excess> {
        spend(&self.unpacked, bytes, self.limits.unpacked_bytes, "bytes unpacked")
    }
}

fn spend(used: &AtomicU64, more: u64, limit: u64, what: &'static str) -> Result<(), Excess> {
    let before = used.fetch_add(more, Ordering::Relaxed);
    match before.checked_add(more) {
        Some(now) if now <= limit => Ok(()),
        _ => Err(Excess { what, limit }),
    }
}
