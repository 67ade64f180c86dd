//! A workflow's images and data sets: names → [`crate::lock::Lock`] → the store.

mod all;
mod data;
mod error;
mod file;
mod find;
mod image;
mod local;
mod resolve;
mod there;

pub use all::all;
pub use data::data;
pub use error::FetchError;
pub use file::{Format, image_to};
pub use find::{Found, find};
pub use image::{PullError, image};
pub use local::{FileError, FileFacts, Local, file_facts};
pub use resolve::{image_source, resolve};
pub use there::is_there;
