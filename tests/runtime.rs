//! Containers, through the real binary, as an ordinary user.

mod apptainer;
mod binds;
pub mod care;
mod confinement;
pub mod fixture;
mod forbidden;
mod image_files;
mod kernel_mounts;
mod old_calls;
mod programs;
mod read_ahead;
mod roots;
mod terminals;
