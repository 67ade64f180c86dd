//! Reading tar archives: ustar (POSIX.1-1988), PAX (POSIX.1-2001) and GNU, as they occur in image layers.
//!
//! The reader only *indexes*: it never opens a path that an archive names. Where dialects leave room, it reads what Go's
//! `archive/tar` reads, because every other tool that applies layers is built on that: two readers that disagree about where an
//! entry ends can be shown two different images (CVE-2026-33055 and kin).

mod error;
mod header;
mod pax;
mod reader;
mod sparse;

pub use error::TarError;
pub use reader::{Content, Entry, Reader};
