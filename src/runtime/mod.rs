//! Containers without root and without anything installed: namespaces, `pivot_root`, bind mounts.
//!
//! Knows no workflow and no registry. Policy fills a [`Container`]; an ordered list of steps is computed from it
//! (`mounts`, pure) and executed by `enter`. The only unsafe code of the crate is `sys`: thin wrappers of system calls.
//!
//! ```text
//! parent (any process, any thread)        spawn      waits for messages on a socket
//!  └─ dvrun __enter 3                     monitor    one thread; passes signals on; dies with the parent
//!      ├─ the image's server            fuse       only for an image that is one file; dies with the monitor
//!      └─ PID 1 of the namespaces         init       makes the container, reaps; dies with the monitor
//!          └─ the program                            dies with PID 1
//!          └─ a reader                    read_ahead asks the server first for what the program will ask; dies with PID 1
//! ```
//!
//! Where the caller has one thread and nothing else to do, it is the monitor itself (`here`).
//!
//! Ranks of an MPI program have the host's process ids: what `init` does as PID 1 there, `orphans` does for them.
//!
//! A failure before the program runs comes back as a [`RuntimeError`]; the program's own end as an [`Exit`].

mod ahead;
mod apptainer;
mod attributes;
mod container;
mod enter;
mod error;
mod execute;
mod exit;
mod filter;
mod forbidden;
mod fuse;
mod gpu;
mod here;
mod host;
mod identity;
mod init;
mod inside;
mod kernel;
mod kernel_mount;
mod launch;
mod layer;
mod look;
mod loop_device;
mod monitor;
mod mounts;
mod orphans;
mod probe;
mod program;
mod read_ahead;
mod root;
mod scif;
mod serve;
mod spawn;
mod sys;
mod terminal;
mod unpack;
mod wire;

pub use apptainer::{Apptainer, apptainer, mount_points};
pub use container::{Container, ImageAccess, MissingCwd, Mount, ReadAhead, Root, User, Writable};
pub use error::{Os, RuntimeError};
pub use exit::{Exit, Io, Status, Usage};
pub use forbidden::Forbidden;
pub use gpu::{GpuError, Gpus, chosen as chosen_gpus, count as count_gpus, find as find_gpus, visible as visible_gpus};
pub use here::{Ended, run_here};
pub use host::{HostProgram, HostRunning, Invocation, spawn_host};
pub use kernel::Kernel;
pub use kernel_mount::{NoKernelMount, is_allowed as may_mount_by_kernel};
pub use launch::{DEFAULT_PATH, LaunchError, entrypoint, environment, script, script_file};
pub use look::LookError;
pub use monitor::reenter;
pub use nix::sys::signal::Signal;
pub use probe::try_container;
pub use program::{NoProgram, find_program};
pub use scif::{App, AppError, app, apps};
pub use serve::best_image_access;
pub use spawn::{Running, Stdio, Stream, spawn, spawn_on_terminal, spawn_rank, spawn_with};
pub use sys::{copy_of as inherited_copy, is_open_here_alone};
pub use terminal::{Raw, Terminal, size_of};
pub use wire::RANK_SOCKET;
