//! The one integration binary: each module tests one part of the program against real counterparts.

mod support;

mod cli;
mod data;
mod gpu;
mod house;
mod image;
mod limits;
mod local;
mod mpi;
mod pipeline;
mod registry;
mod runtime;
mod slurm;
mod squashfs;
mod tasks;
mod workflow;
