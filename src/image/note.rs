//! What a converted image does not have of what its layers say.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One kind of loss: told once, however often it occurs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub kind: NoteKind,
    pub count: u64,
    /// The first such path, in the image's order.
    pub first: String,
}

/// What an ordinary user's folder cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// A device became an empty file.
    Device,
    /// Set-user-ID and set-group-ID bits were left out.
    SetId,
    /// Extended attributes were left out.
    Xattr,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Note { kind, count, first } = self;
        match kind {
            NoteKind::Device => write!(f, "{count} device(s) became empty files (/{first})"),
            NoteKind::SetId => write!(f, "{count} file(s) lost their set-user-ID or set-group-ID bit (/{first})"),
            NoteKind::Xattr => write!(f, "{count} file(s) lost extended attributes (/{first})"),
        }
    }
}
