//! The SquashFS and SIF readers: what `mksquashfs` and Apptainer wrote, and what was made to do harm.

mod hostile;
mod images;
mod sif;
pub mod walk;
