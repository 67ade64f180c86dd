//! Names of things in the Open Container Initiative's world, parsed once and typed from then on.
//!
//! Nothing here does I/O.

mod config;
mod digest;
mod manifest;
mod platform;
mod reference;
mod schema1;
mod source;

pub use config::{Execution, ImageConfig};
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use manifest::{ACCEPT, Descriptor, ImageManifest, Index, LAYERS_MAX, MANIFEST_MAX, Manifest, ManifestError};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use schema1::{Schema1, signed_payload};
pub use source::{ArchiveKind, Source, SourceError, image_file};
