//! dvrun: one workflow file in, containers run on SLURM or on this machine.
//!
//! Data flows one way, and each arrow is a function from one type to the next:
//!
//! ```text
//! workflow.yaml ─ read ─ check ─▶ Workflow ─ resolve ─▶ Lock ─ plan ─▶ Plan ─ fetch ─▶ store ─ convert ─▶ image
//!                                                                      └─ execute (local │ slurm) ─▶ records ─▶ status
//! ```
//!
//! | module | is |
//! |---|---|
//! | [`workflow`] | the file: YAML with positions → checked [`workflow::Workflow`]; templates, units, graph (pure) |
//! | [`lock`] | what names resolved to: tags → digests, data sets → keys in the store (pure) |
//! | [`plan`] | workflow + lock + what ran before → [`plan::Plan`]: what runs, and why (pure) |
//! | [`binds`] | which folders a task sees, and where (pure) |
//! | [`oci`] | names of things: reference, digest, manifest, config (pure) |
//! | [`net`] | HTTP: retries, redirects, ranges, mirrors (async) |
//! | [`registry`] | manifests and blobs from registries and from layouts on disk (async) |
//! | [`data`] | data sets: download and verify (async) |
//! | [`store`] | content-addressed folder of blobs, images and data; atomic, locked |
//! | [`fetch`] | a lock's images and data sets → the store |
//! | [`image`] | layers → one merged tree → root folder |
//! | [`squashfs`], [`sif`] | reading images that are one file |
//! | [`runtime`] | a [`runtime::Container`] → a running process in namespaces |
//! | [`engine`] | what runs: the graph here, or as SLURM jobs; the inside of a task |
//! | [`state`] | the run folder: journal of intents and job ids, exit records |
//! | [`cli`] | one file a command; the only reader of the environment and writer to the terminal |

pub mod binds;
pub mod cli;
pub mod data;
pub mod engine;
pub mod fetch;
pub mod image;
pub mod lock;
pub mod net;
pub mod oci;
pub mod plan;
pub mod registry;
pub mod runtime;
pub mod sif;
pub mod squashfs;
pub mod state;
pub mod store;
pub mod workflow;
