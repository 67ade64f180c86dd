//! Manifests and blobs, from registries over HTTP (OCI distribution spec) from layouts on disk and from archives. Async.
//!
//! [`resolve`] turns a [`crate::oci::Source`] into the one manifest for a platform; [`config`] reads what the image
//! says of itself; [`pull`] brings its layers into the store, each verified while it is read. A [`Session`] is what
//! they share: client, store, credentials, tokens.

mod archive;
mod artifact;
mod auth;
mod blob;
mod challenge;
mod credentials;
mod endpoint;
mod error;
mod keep;
mod layout;
mod login;
mod modern;
mod named;
mod pull;
mod push;
mod remote;
mod resolve;
mod session;
mod stored;
mod tags;
mod upload;
mod write_layout;

pub use artifact::{ResolvedSif, SIF_LAYER, pull_sif, push_sif, resolve_sif, sif_head};
pub use credentials::{Credential, Credentials};
pub use error::{ApiError, RegistryError};
pub use keep::{Kept, keep, remove};
pub use login::{Checked, Registry, check_login};
pub use pull::{Pulled, pull};
pub use push::{Extent, push_image};
pub use resolve::{Resolved, config, config_blob, resolve};
pub use session::{Session, TagPolicy};
pub use stored::{StoredLogin, TOKEN_USER};
pub use tags::tags;
pub use write_layout::write_layout;
