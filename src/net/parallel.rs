//! A large body in several parts at once, where the server allows it. One thread writes and hashes them all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::StatusCode;
use reqwest::header::{HeaderValue, RANGE, RETRY_AFTER};
use tokio::sync::mpsc;
use tokio::task;

use super::backoff::is_transient;
use super::client::{Reply, pause, reason};
use super::download::joined;
use super::partial::{Partial, Piece};
use super::parts::Span;
use super::range::ContentRange;
use super::{Client, Content, Download, Event, NetError, Progress, redact};

/// Pieces on their way from the network to the disk.
const QUEUE: usize = 16;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ranges {
    /// All parts are there.
    Done,
    /// The server gives the whole or nothing.
    Unsupported,
}

/// What ends all parts.
enum Stop {
    Error(NetError),
    Unsupported,
}

/// What the parts of one download share.
struct Shared<'a> {
    download: &'a Download<'a>,
    size: u64,
    pieces: mpsc::Sender<Piece>,
    done: AtomicU64,
    progress: Progress<'a>,
}

impl Client {
    /// Whether a body of this length is worth several requests.
    pub(super) fn in_parts(&self, download: &Download<'_>) -> Option<u64> {
        let part = self.options().part_bytes;
        let size = download.size.filter(|_| download.digest.is_some())?;
        (part > 0 && size / 2 >= part).then_some(size)
    }

    /// Brings what is missing of `size` bytes. On an error what has come stays, and is known to the next call.
    pub(super) async fn parallel(
        &self,
        mut partial: Partial,
        download: &Download<'_>,
        size: u64,
        progress: Progress<'_>,
    ) -> Result<(Partial, Ranges), NetError> {
        let part = self.options().part_bytes;
        let (returned, missing) = joined(
            task::spawn_blocking(move || {
                let missing = partial.open_parts(size, part);
                (partial, missing)
            })
            .await,
        );
        partial = returned;
        let missing = missing?;
        let there = size - missing.iter().map(|span| span.end - span.from).sum::<u64>();
        let (pieces, queue) = mpsc::channel(QUEUE);
        let shared = Shared {
            download,
            size,
            pieces,
            done: AtomicU64::new(there),
            progress,
        };
        let writer = task::spawn_blocking(move || partial.write_pieces(queue));
        let result = self.all(&shared, missing).await;
        drop(shared);
        let (partial, written) = joined(writer.await);
        written?;
        match result {
            Ok(()) => Ok((partial, Ranges::Done)),
            Err(Stop::Unsupported) => Ok((partial, Ranges::Unsupported)),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    async fn all(&self, shared: &Shared<'_>, missing: Vec<Span>) -> Result<(), Stop> {
        let mut missing = missing.into_iter();
        let Some(first) = missing.next() else { return Ok(()) };
        // Alone, until the server has shown that it knows ranges.
        let opened = self.open(shared, first).await;
        if let Ok(reply) = &opened
            && reply.response.status() == StatusCode::OK
        {
            return Err(Stop::Unsupported);
        }
        let spans = stream::iter([(first, Some(opened))]).chain(stream::iter(missing.map(|span| (span, None))));
        spans
            .map(async |(span, opened)| self.part(shared, span, opened).await)
            .buffer_unordered(self.options().connections.max(1))
            .try_collect()
            .await
    }

    async fn open(&self, shared: &Shared<'_>, span: Span) -> Result<Reply, NetError> {
        let mut request = shared.download.request.clone();
        request.content = Content::Verified;
        let range = format!("bytes={}-{}", span.from, span.end - 1);
        let range = HeaderValue::from_str(&range).expect("digits are a header value");
        request.headers.insert(RANGE, range);
        self.once(&request).await
    }

    /// One part to its end.
    async fn part(&self, shared: &Shared<'_>, mut span: Span, mut opened: Option<Result<Reply, NetError>>) -> Result<(), Stop> {
        let mut failures = 0;
        while span.from < span.end {
            let before = span.from;
            let reply = match opened.take() {
                Some(reply) => reply,
                None => self.open(shared, span).await,
            };
            let result = match reply {
                Ok(reply) => self.fill(shared, &mut span, reply).await?,
                Err(error) => Err((error, None)),
            };
            let Err((error, wait)) = result else { continue };
            if !error.is_passing() && error.refusal().is_none() {
                return Err(Stop::Error(error));
            }
            if span.from > before {
                failures = 0;
            }
            failures += 1;
            if failures >= self.attempts(Some(&error)) {
                return Err(Stop::Error(error));
            }
            let wait = wait.unwrap_or_else(|| self.delay(failures));
            pause(shared.download.what, &reason(&error), wait, shared.progress).await;
        }
        Ok(())
    }

    /// What one reply has of a part. The inner error: another try may help.
    async fn fill(&self, shared: &Shared<'_>, span: &mut Span, mut reply: Reply) -> Result<Result<(), (NetError, Option<Duration>)>, Stop> {
        match reply.response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => return Err(Stop::Unsupported),
            _ => return self.refused_part(reply).await,
        }
        let range = ContentRange::of(reply.response.headers());
        if !range.is_some_and(|range| range.is_part(span.from, span.end, shared.size)) {
            return Ok(Err((NetError::Range { url: reply.url }, None)));
        }
        while span.from < span.end {
            let chunk = match reply.response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    let error = NetError::Truncated {
                        url: redact(&shared.download.request.url),
                        got: span.from,
                        expected: span.end,
                        attempts: 1,
                    };
                    return Ok(Err((error, None)));
                }
                Err(source) => {
                    let source = source.without_url();
                    return Ok(Err((NetError::Transport { url: reply.url, source }, None)));
                }
            };
            let room = usize::try_from(span.end - span.from).unwrap_or(usize::MAX);
            if chunk.len() > room {
                return Ok(Err((NetError::Range { url: reply.url }, None)));
            }
            self.hand_over(shared, span, chunk).await?;
        }
        Ok(Ok(()))
    }

    async fn hand_over(&self, shared: &Shared<'_>, span: &mut Span, bytes: Bytes) -> Result<(), Stop> {
        let (offset, length) = (span.from, bytes.len() as u64);
        let piece = Piece {
            part: span.index,
            offset,
            bytes,
        };
        if shared.pieces.send(piece).await.is_err() {
            // The writer has failed; its own error is the one that counts.
            return Err(Stop::Unsupported);
        }
        span.from += length;
        let done = shared.done.fetch_add(length, Ordering::Relaxed) + length;
        let what = shared.download.what;
        (shared.progress)(Event::Advanced { what, done });
        Ok(())
    }

    async fn refused_part(&self, reply: Reply) -> Result<Result<(), (NetError, Option<Duration>)>, Stop> {
        let answer = match reply.read(0).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Err((error, None))),
        };
        if !is_transient(answer.status) {
            return Err(Stop::Error(answer.refused()));
        }
        let asked = answer.headers.contains_key(RETRY_AFTER);
        match self.wait_after(&answer.headers, 1).filter(|_| asked) {
            None if asked => Err(Stop::Error(answer.refused())),
            wait => Ok(Err((answer.refused(), wait))),
        }
    }
}
