//! What a program read when it started, learnt by its first container, and read ahead of it in the next.
//!
//! Through FUSE each question costs two processes' waking, and a large package tree asks thousands, one after the other. Another
//! process that asks first finds the second processor idle:
//!
//! ```text
//! server ── trace ──> monitor: a list, when the container has ended
//!                       │  (a file of the cache folder, by image and program)
//! PID 1 of the next  <──┘
//!  └─ reader: opens and reads what the list names, in order; the program finds it in the kernel's cache
//! ```
//!
//! A list is advice: paths that are not there are passed over, and one that is wrong costs time of an idle processor.

mod learn;
mod list;
mod reader;
mod trace;

pub use learn::Learning;
pub use list::List;
pub use reader::start;
pub use trace::{Question, Trace};
