//! A container as a plain value.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that decides what a contained program sees. Serialised to the re-executed binary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    pub root: Root,
    pub writable: Writable,
    /// In any order; the mount list sorts them so that an outer target comes before an inner one.
    pub binds: Vec<Mount>,
    /// The whole environment: nothing else is there.
    pub env: Vec<(String, String)>,
    /// Absolute, in the container; created when missing (in the writable layer).
    pub cwd: PathBuf,
    /// At least one word; the program is looked up along `PATH` of `env` inside the container.
    pub argv: Vec<String>,
    /// uid 0 inside instead of the caller's own.
    pub as_root: bool,
    /// A folder of the host bound to `/tmp`; a private tmpfs where absent.
    pub scratch: Option<PathBuf>,
    /// Private HOME, as seen inside; a tmpfs folder is made there.
    pub home: PathBuf,
    /// Host name inside.
    pub hostname: Option<String>,
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// An unpacked image.
    Folder(PathBuf),
    /// A SquashFS file system that begins at byte `offset` of `file` (of a SIF, where its primary partition does).
    Squashfs {
        file: PathBuf,
        offset: u64,
        access: ImageAccess,
        /// A folder of this node in which an image is unpacked when there is no other way.
        scratch: PathBuf,
    },
}

/// How an image that is one file is made a root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageAccess {
    /// The first of the others that this host allows.
    #[default]
    Auto,
    /// A server of ours through `/dev/fuse`.
    Fuse,
    /// A copy on this node, shared by all containers of the image that run at a time, and removed by the last.
    Extract,
}

/// What happens to writes outside binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writable {
    /// Refused (EROFS); missing mount points are still made.
    No,
    /// Kept in memory until the container ends.
    Tmpfs,
}

/// A file or folder of the host, seen in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}
