//! Large bodies into files: verified while read, resumed where they broke off, within a run and across runs.

use std::path::Path;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderValue, IF_RANGE, RANGE};
use tokio::sync::mpsc;
use tokio::task;

use super::backoff::is_transient;
use super::client::{Reply, pause, reason};
use super::parallel::Ranges;
use super::partial::{Earlier, Partial};
use super::range::ContentRange;
use super::{Client, Content, Event, NetError, Progress, Request, redact};
use crate::oci::{Algorithm, Digest};

/// Chunks on their way from the network to the disk.
const QUEUE: usize = 4;

/// What to download, and where to.
#[derive(Debug)]
pub struct Download<'a> {
    pub request: Request,
    /// The name in progress events.
    pub what: &'a str,
    /// What the body must hash to.
    pub digest: Option<&'a Digest>,
    /// The body's exact length in bytes. A longer one is cut off and refused.
    pub size: Option<u64>,
    /// Where the bytes go. With a digest, what an earlier process left there is gone on with.
    pub partial: &'a Path,
}

/// What is now, whole and synced, in the partial file.
#[derive(Clone, Debug, PartialEq)]
pub struct Downloaded {
    pub digest: Digest,
    pub size: u64,
}

/// How one try ended.
enum Outcome {
    /// The server is through.
    Ended,
    /// Broken off, or refused for now.
    Failed {
        error: NetError,
        wait: Option<std::time::Duration>,
    },
}

impl Client {
    /// Downloads. On a refusal ([`NetError::Refused`]) what came before it stays in the partial file, so that the
    /// same call with other credentials goes on from there. Bytes that turn out wrong are removed.
    pub async fn download(&self, download: &Download<'_>, progress: Progress<'_>) -> Result<Downloaded, NetError> {
        self.download_and(download, progress, || ()).await
    }

    /// As [`Client::download`]; `whole` is called when all bytes are in the file and verified, but not yet on the disk for good: they can
    /// be worked on while that is waited for.
    pub async fn download_and(&self, download: &Download<'_>, progress: Progress<'_>, whole: impl Fn()) -> Result<Downloaded, NetError> {
        let url = redact(&download.request.url);
        let mut partial = open(download).await?;
        // Bytes of an earlier try, maybe from another server: if the sum is wrong, they may be why.
        let mut patched = partial.total() > 0;
        let mut etag = None;
        let (mut failures, mut best) = (0, partial.len());
        progress(Event::Started {
            what: download.what,
            done: partial.total(),
            total: download.size,
        });
        let mut ended = false;
        if let Some(size) = self.in_parts(download).filter(|size| partial.len() < *size) {
            let (returned, ranges) = self.parallel(partial, download, size, progress).await?;
            partial = returned;
            if ranges == Ranges::Unsupported {
                partial.close_parts()?;
            }
            // Of several replies, maybe of several servers behind one name.
            patched = true;
            best = partial.len();
        }
        loop {
            if download.size.is_some_and(|size| partial.len() > size) {
                partial.restart()?;
            }
            if ended || is_complete(&partial, download) {
                let digest = partial.digest();
                match download.digest {
                    Some(expected) if *expected != digest && patched => {
                        partial.restart()?;
                        patched = false;
                        ended = false;
                    }
                    Some(expected) if *expected != digest => {
                        partial.remove()?;
                        return Err(NetError::Digest {
                            url,
                            expected: expected.clone(),
                            actual: digest,
                        });
                    }
                    _ => {
                        whole();
                        return finish(partial, digest, download, progress).await;
                    }
                }
            }
            let before = partial.len();
            let (returned, outcome) = self.attempt(partial, download, &mut etag, progress).await?;
            partial = returned;
            patched |= before > 0 && partial.len() > before;
            let (error, wait) = match outcome {
                Outcome::Ended => match download.size {
                    Some(expected) if partial.len() < expected => {
                        let error = NetError::Truncated {
                            url: url.clone(),
                            got: partial.len(),
                            expected,
                            attempts: failures + 1,
                        };
                        (error, None)
                    }
                    _ => {
                        ended = true;
                        continue;
                    }
                },
                Outcome::Failed { error, wait } => (error, wait),
            };
            // A server that gives a little each time is got through with; one that gives nothing is not.
            if partial.len() > best {
                best = partial.len();
                failures = 0;
            }
            failures += 1;
            if failures >= self.attempts(Some(&error)) {
                return Err(error);
            }
            let wait = wait.unwrap_or_else(|| self.delay(failures));
            pause(download.what, &reason(&error), wait, progress).await;
        }
    }

    /// One request for what is missing. Errors are final; others are in the outcome.
    async fn attempt(
        &self,
        mut partial: Partial,
        download: &Download<'_>,
        etag: &mut Option<HeaderValue>,
        progress: Progress<'_>,
    ) -> Result<(Partial, Outcome), NetError> {
        // Without a checksum only the server's own word says that the rest belongs to what is there.
        if download.digest.is_none() && etag.is_none() && partial.len() > 0 {
            partial.restart()?;
        }
        let first = partial.len();
        let mut request = download.request.clone();
        if download.digest.is_some() {
            request.content = Content::Verified;
        }
        if first > 0 {
            let range = HeaderValue::from_str(&format!("bytes={first}-")).expect("digits are a header value");
            request.headers.insert(RANGE, range);
            if let Some(etag) = etag.as_ref() {
                request.headers.insert(IF_RANGE, etag.clone());
            }
        }
        let reply = match self.once(&request).await {
            Ok(reply) => reply,
            Err(error) => return failed(partial, error),
        };
        let status = reply.response.status();
        match status {
            StatusCode::PARTIAL_CONTENT if first > 0 => {
                let range = ContentRange::of(reply.response.headers());
                if !range.is_some_and(|range| range.is_rest(first, download.size)) {
                    partial.restart()?;
                    return failed(partial, NetError::Range { url: reply.url });
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE if first > 0 => {
                partial.restart()?;
                return match reply.read(0).await {
                    Ok(answer) => failed(partial, answer.refused()),
                    Err(error) => failed(partial, error),
                };
            }
            StatusCode::OK => partial.restart()?,
            _ => return self.refused(partial, reply).await,
        }
        if download.digest.is_none() {
            *etag = strong(reply.response.headers().get(ETAG));
        }
        let limit = download.size.map(|size| size - partial.len());
        if let (Some(limit), Some(length)) = (limit, length(&reply))
            && length > limit
        {
            return too_long(partial, download);
        }
        receive(partial, reply, download, limit, progress).await
    }

    async fn refused(&self, partial: Partial, reply: Reply) -> Result<(Partial, Outcome), NetError> {
        let answer = match reply.read(0).await {
            Ok(answer) => answer,
            Err(error) => return failed(partial, error),
        };
        let wait = is_transient(answer.status).then(|| self.wait_after(&answer.headers, 1)).flatten();
        match wait {
            Some(_) if answer.headers.contains_key(reqwest::header::RETRY_AFTER) => {
                let outcome = Outcome::Failed {
                    error: answer.refused(),
                    wait,
                };
                Ok((partial, outcome))
            }
            Some(_) => failed_for_now(partial, answer.refused()),
            None => Err(answer.refused()),
        }
    }
}

/// Reads a body into the file, on a thread of its own: hashing and writing must not hold up other downloads.
async fn receive(
    partial: Partial,
    mut reply: Reply,
    download: &Download<'_>,
    limit: Option<u64>,
    progress: Progress<'_>,
) -> Result<(Partial, Outcome), NetError> {
    let mut done = partial.len();
    let end = limit.map(|limit| done + limit);
    let (chunks, queue) = mpsc::channel::<Bytes>(QUEUE);
    let writer = task::spawn_blocking(move || partial.write(queue));
    let mut longer = false;
    let outcome = loop {
        match reply.response.chunk().await {
            Ok(Some(chunk)) => {
                done += chunk.len() as u64;
                if end.is_some_and(|end| done > end) {
                    longer = true;
                    break Outcome::Ended;
                }
                if chunks.send(chunk).await.is_err() {
                    // The writer has failed; its own error follows.
                    break Outcome::Ended;
                }
                progress(Event::Advanced { what: download.what, done });
            }
            Ok(None) => break Outcome::Ended,
            Err(source) => {
                let error = NetError::Transport {
                    url: reply.url.clone(),
                    source: source.without_url(),
                };
                break Outcome::Failed { error, wait: None };
            }
        }
    };
    drop(chunks);
    let (partial, written) = joined(writer.await);
    written?;
    if longer {
        return too_long(partial, download);
    }
    Ok((partial, outcome))
}

fn failed(partial: Partial, error: NetError) -> Result<(Partial, Outcome), NetError> {
    let passing = error.is_passing() || error.refusal().is_some();
    if passing { failed_for_now(partial, error) } else { Err(error) }
}

fn failed_for_now(partial: Partial, error: NetError) -> Result<(Partial, Outcome), NetError> {
    Ok((partial, Outcome::Failed { error, wait: None }))
}

fn too_long(partial: Partial, download: &Download<'_>) -> Result<(Partial, Outcome), NetError> {
    partial.remove()?;
    Err(NetError::TooLong {
        url: redact(&download.request.url),
        limit: download.size.unwrap_or_default(),
    })
}

/// With a size, that many bytes; without one, the right checksum says it. The server need not be asked then.
fn is_complete(partial: &Partial, download: &Download<'_>) -> bool {
    match (download.size, download.digest) {
        (Some(size), _) => partial.len() == size,
        (None, Some(digest)) => partial.len() > 0 && partial.digest() == *digest,
        (None, None) => false,
    }
}

async fn open(download: &Download<'_>) -> Result<Partial, NetError> {
    let path = download.partial.to_owned();
    let algorithm = download.digest.map_or(Algorithm::Sha256, Digest::algorithm);
    let earlier = if download.digest.is_some() {
        Earlier::Keep
    } else {
        Earlier::Discard
    };
    joined(task::spawn_blocking(move || Partial::open(&path, algorithm, earlier)).await)
}

async fn finish(partial: Partial, digest: Digest, download: &Download<'_>, progress: Progress<'_>) -> Result<Downloaded, NetError> {
    let size = partial.len();
    joined(task::spawn_blocking(move || partial.sync()).await)?;
    progress(Event::Finished { what: download.what, size });
    Ok(Downloaded { digest, size })
}

pub(super) fn joined<T>(result: Result<T, task::JoinError>) -> T {
    result.expect("the thread neither panics nor is cancelled")
}

fn length(reply: &Reply) -> Option<u64> {
    reply.response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Weak validators say nothing about bytes (RFC 9110, 13.1.5).
fn strong(etag: Option<&HeaderValue>) -> Option<HeaderValue> {
    etag.filter(|etag| etag.as_bytes().starts_with(b"\"")).cloned()
}
