//! GPUs in a container: the devices, and the libraries of the driver, which belong to the host's kernel and not to an image.
//!
//! ```text
//! /etc/cdi, /var/run/cdi ─ cdi ────┐ what the site says, where it says it
//! /etc/ld.so.cache ─ ldcache ─┐    ├─▶ Gpus: binds and variables ─ add_to ─▶ Container
//! /dev/nvidia*            ─ nvidia ┤
//! /dev/kfd, /dev/dri      ─ amd ───┘
//! ```
//!
//! Everything is found below a root folder, `/` on a real host, and is data: no kernel is asked, no program of the host's is
//! run. Of the C library nothing is taken: an image's programs go on with their own.

mod amd;
mod cdi;
mod choice;
mod find;
mod ldcache;
mod nvidia;

pub use choice::{chosen, visible};
pub use find::{GpuError, Gpus, count, find};
