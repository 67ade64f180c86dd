//! Which optional features of the kernel may be used.

use serde::{Deserialize, Serialize};

/// All by default, each with a fallback where the kernel has none. Switched off where one is known to be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    /// Overlay file systems in user namespaces (Linux 5.11).
    pub overlay: bool,
    /// `mount_setattr` (Linux 5.12), and with it mounts that are made before they have a place.
    pub mount_attributes: bool,
    /// `pivot_root`, which a host that runs from its initial RAM disk refuses (diskless nodes).
    pub pivot_root: bool,
}

impl Default for Kernel {
    fn default() -> Self {
        Kernel {
            overlay: true,
            mount_attributes: true,
            pivot_root: true,
        }
    }
}
