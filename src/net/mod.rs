//! HTTP for registries and data: retries, redirects, ranges, mirrors; secrets kept out of messages. Async.
//!
//! One [`Client`] for the whole program: it bounds the connections and holds the settings. `Client::send` answers
//! with whatever status the server gave once retrying is over; [`Client::read`] also reads a small body;
//! [`Client::download`] brings a large one into a file, verified while it is read and resumed where it broke off.

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
mod upload;
mod url;

pub use client::{Answer, Client, Content, Request};
pub use download::{Download, Downloaded};
pub use error::{NetError, Refusal};
pub use options::{Options, Proxy, RegistryOptions};
pub use progress::{Event, Progress, silent};
pub use url::{is_loopback, redact};
