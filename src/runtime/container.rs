//! A container as a plain value.

use std::fmt;
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
    /// Absolute, in the container.
    pub cwd: PathBuf,
    pub missing_cwd: MissingCwd,
    /// At least one word; the program is looked up along `PATH` of `env` inside the container.
    pub argv: Vec<String>,
    pub user: User,
    /// A folder of the host bound to `/tmp`; a private tmpfs where absent.
    pub scratch: Option<PathBuf>,
    /// Private HOME, as seen inside; a tmpfs folder is made there.
    pub home: PathBuf,
    /// Host name inside.
    pub hostname: Option<String>,
    /// `None`: nothing is read ahead of the program, and nothing learnt. Counts for an image that a server of ours answers for.
    pub read_ahead: Option<ReadAhead>,
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

/// Where it is kept what programs read when they start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadAhead {
    /// A folder of lists, one for each image and program; made when there is the first.
    pub folder: PathBuf,
    /// A name for programs that read the same: they share a list.
    pub program: String,
}

/// How an image that is one file is made a root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageAccess {
    /// The first of the others that this host allows.
    #[default]
    Auto,
    /// The kernel's own mount, for root. What belongs to another than the caller in the image belongs to `nobody` in the
    /// container: [`ImageAccess::Auto`] leaves such images to the others.
    Kernel,
    /// A server of ours through `/dev/fuse`.
    Fuse,
    /// A copy on this node, shared by all containers of the image that run at a time, and removed by the last.
    Extract,
}

/// Who the caller is inside. Outside it stays the caller, with no more rights than it has: one number of the container stands
/// for it, and there are no others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum User {
    /// The same uid and gid.
    #[default]
    Caller,
    /// uid 0 and gid 0, which may change owners and modes of the caller's own files.
    Root,
    /// Whom an image's configuration names (OCI image spec, "config": `User`): `user`, `uid`, `user:group` or `uid:gid`, names
    /// being those of the image's own `/etc/passwd` and `/etc/group`. Empty means root.
    Image(String),
}

impl fmt::Display for ImageAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageAccess::Auto => "auto",
            ImageAccess::Kernel => "kernel",
            ImageAccess::Fuse => "fuse",
            ImageAccess::Extract => "extract",
        })
    }
}

/// What becomes of a working directory that neither the image nor a bind has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingCwd {
    /// It is made, empty, as Docker does with an image's `WorkingDir`.
    #[default]
    Make,
    /// Nothing starts: it is a mistake.
    Refuse,
}

/// What happens to writes outside binds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writable {
    /// Refused (EROFS); missing mount points are still made.
    No,
    /// Kept in memory until the container ends.
    Tmpfs,
    /// Kept in a folder of the host, which the next container may start from; one at a time.
    Folder(PathBuf),
}

/// A file or folder of the host, seen in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}
