//! HTTP for registries and data: retries, redirects, ranges, mirrors; secrets kept out of messages. Async.
//!
//! One [`Client`] for the whole program: it bounds the connections and holds the settings. [`Client::read`] gives a
//! small answer of whatever status once retrying is over; [`Client::download`] brings a large body into a file, verified while
//! it is read and resumed where it broke off; [`Client::upload`] sends a part of a file.

mod backoff;
mod client;
mod download;
mod error;
mod options;
mod parallel;
mod partial;
mod parts;
mod progress;
mod range;
mod tls;
mod upload;
mod url;

pub use client::{Answer, Client, Content, Request};
pub use download::{Download, Downloaded};
pub use error::{NetError, Refusal};
pub use options::{Options, Proxy, RegistryOptions, replacements};
pub use progress::{Event, Progress, silent};
pub use upload::Upload;
pub use url::{is_loopback, redact};
