//! A workflow's images and data sets: names → [`crate::lock::Lock`] → the store.

mod all;
mod data;
mod error;
mod file;
mod image;
mod resolve;
mod there;

pub use all::all;
pub use data::data;
pub use error::FetchError;
pub use file::{Format, image_to};
pub use image::{PullError, image};
pub use resolve::{image_source, resolve};
pub use there::is_there;
