//! Containers, through the real binary, as an ordinary user.

mod binds;
mod care;
mod confinement;
pub mod fixture;
mod image_files;
mod programs;
mod roots;
mod terminals;
