//! The content-addressed store under the cache folder (`DVRUN_CACHE`, or the XDG cache folder's `dvrun`).
//!
//! ```text
//! v1/                              the layout's version: another layout is another folder
//! ├── blobs/sha256/ab/abcd…        verified bytes: manifests, configs, layers, data files (mode 0444)
//! ├── images/sha256-abcd…/         one image, named by its manifest's digest (a SIF file on disk: by its own)
//! │   ├── rootfs/                  unpacked layers; or `image.sif`, a second name of a blob; or neither, where the
//! │   │                            image is a file or folder of the user's that is used where it lies
//! │   ├── in-use                   locked by whoever runs it; its time is when it was used last
//! │   ├── checksums                of the files in it, as `sha256sum` writes them
//! │   └── image.json               source, config: written last, so that it marks a whole image
//! ├── data/sha256-abcd…/           one data set, named by its identity: files hard-linked from blobs
//! ├── tags/                        tag → digest, with the time it was asked
//! ├── partial/                     downloads in progress, resumed by the next process
//! ├── read-ahead/                  what programs read of images when they start: advice, written by their containers
//! ├── scratch/                     conversions in progress; each folder is locked by its owner, and swept when it is not
//! └── locks/                       one file a piece of work: two processes do it once
//! ```

mod blobs;
mod error;
mod folder;
mod hold;
mod images;
mod locks;
mod prune;
mod prune_images;
mod readable;
mod remove;
mod scratch;
mod tags;
mod verify;

pub use error::StoreError;
pub use folder::Store;
pub use hold::Hold;
pub use images::{ImageDraft, ImageInfo, Place, Removal, Stamp, StoredImage, StoredLayer, StoredRoot};
pub use locks::Guard;
pub use prune::{Prune, Space};
pub use prune_images::Pruned;
pub use readable::{OpenFolders, open_own};
pub use remove::remove_tree;
pub use scratch::Scratch;
pub use tags::Tag;
pub use verify::{BlobState, Damage, Verified, write_checksum};
