//! The image's file system, served through `/dev/fuse` by a process of the container's own.
//!
//! ```text
//! monitor ─┬─ server: outside the namespaces; threads that answer from the image file
//!          └─ PID 1: opens /dev/fuse in its user namespace, mounts, hands the descriptor to the server
//! ```
//!
//! `/dev/fuse` is spoken directly (`include/uapi/linux/fuse.h`), since mounting happens by `mount(2)` in a namespace of our
//! own, where `fusermount` and libraries made for it have no place. The file system never changes: the kernel may keep names,
//! attributes and contents for as long as it likes, and nothing is remembered here about what it has looked at.
//!
//! The server stands outside the PID namespace, so that no program of the container sees it or can signal it. When it dies,
//! the monitor ends the container; when the monitor dies, the kernel ends the server.

mod mount;
mod protocol;
mod reply;
mod server;

pub use mount::mount;
pub use server::{Handover, Owner, start};
