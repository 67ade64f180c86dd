//! Layers → one merged tree → a root folder, a SquashFS, or a SIF. Threads and rayon; no network, no workflow.
//!
//! ```text
//! blob ─ inflate, verify, spool, index ─▶ entries ─┐
//! blob ─ inflate, verify, spool, index ─▶ entries ─┼─ merge ─▶ Tree ─ write ─▶ folder │ SquashFS → SIF
//! blob ─ inflate, verify, spool, index ─▶ entries ─┘                  (with Apptainer's files)
//! ```
//!
//! Each layer is read once, as it arrives ([`Layers`]); only its *index* stays in memory. Merging indexes decides which names
//! and bodies win ([`Tree`]), and only those are written, from the spooled layers. Nothing is ever unpacked over something else,
//! so no entry can be made to lead outside the root.
//!
//! What a layer means is the OCI image specification's `layer.md`; how it is packed is [`tar`]'s subject.

mod apps;
mod apptainer;
mod changes;
mod check;
mod edit;
mod error;
mod folder;
mod inflate;
mod layer;
mod layers;
mod limits;
mod merge;
mod names;
mod note;
mod sif;
mod spool;
mod squashfs;
pub mod tar;
mod tree;

pub use apps::App;
pub use apptainer::{ApptainerFiles, Origin, apptainer_files, write_apptainer_sif};
pub use check::{Readable, read_all};
pub use edit::{AddedContent, Addition, When};
pub use error::ImageError;
pub use folder::{Converted, convert_folder, write_folder};
pub use layer::LayerBlob;
pub use layers::{Layers, Merged};
pub use limits::Limits;
pub use names::Names;
pub use note::{Note, NoteKind};
pub use sif::{SifDescription, write_sif};
pub use spool::READ_CACHE;
pub use squashfs::{Compression, CompressionError, SquashfsOptions, Written, write_squashfs};
pub use tree::{Body, Data, Few, Inode, InodeId, Meta, Node, Segment, Time, Tree, Xattr};
