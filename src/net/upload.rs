//! Parts of files as request bodies, read while they are sent.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use reqwest::Body;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Answer, Client, Event, NetError, Progress, Request, redact};

/// How much is read at a time, in bytes.
const PIECE: usize = 256 << 10;
/// How often it is said how much is sent.
const TICK: Duration = Duration::from_millis(100);
/// How many times the usual patience an answer may take when all is sent.
const AFTERWARDS: u64 = 10;

/// What is sent: bytes `part` of the file at `path`.
#[derive(Clone, Debug)]
pub struct Upload<'a> {
    /// The name in progress events.
    pub what: &'a str,
    pub path: &'a Path,
    pub part: Range<u64>,
}

impl Client {
    /// Sends `request` once with a part of a file as its body, and reads an answer of at most `limit` bytes. Any status is an
    /// answer. Not repeated: what a server has of a broken upload it alone can say.
    pub async fn upload(&self, mut request: Request, upload: &Upload<'_>, limit: u64, progress: Progress<'_>) -> Result<Answer, NetError> {
        let url = request.url.clone();
        let mut file = File::open(upload.path).await.map_err(failed(upload.path))?;
        file.seek(SeekFrom::Start(upload.part.start)).await.map_err(failed(upload.path))?;
        let sent = Arc::new(AtomicU64::new(upload.part.start));
        let left = upload.part.end - upload.part.start;
        let counted = Arc::clone(&sent);
        let pieces = stream::try_unfold((file, left), move |(mut file, left)| {
            let counted = Arc::clone(&counted);
            async move {
                if left == 0 {
                    return Ok::<_, std::io::Error>(None);
                }
                let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
                let read = file.read(&mut piece).await?;
                if read == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                piece.truncate(read);
                counted.fetch_add(read as u64, Ordering::Relaxed);
                Ok(Some((Bytes::from(piece), (file, left - read as u64))))
            }
        });
        request.headers.insert(CONTENT_LENGTH, HeaderValue::from(left));
        request
            .headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let send = async {
            let reply = self.once_with(&request, Some(Body::wrap_stream(pieces))).await?;
            reply.read(limit).await
        };
        tokio::pin!(send);
        let mut tick = tokio::time::interval(TICK);
        let (mut last, mut since) = (upload.part.start, Instant::now());
        loop {
            tokio::select! {
                answer = &mut send => return answer,
                _ = tick.tick() => {}
            }
            let done = sent.load(Ordering::Relaxed);
            if done > last {
                (last, since) = (done, Instant::now());
                progress(Event::Advanced { what: upload.what, done });
            }
            // Who has it all may have to write it all before there is something to say.
            let patience = match done == upload.part.end {
                true => self.options().read_timeout.saturating_mul(AFTERWARDS),
                false => self.options().read_timeout,
            };
            if since.elapsed() > Duration::from_secs(patience) {
                return Err(NetError::Stalled {
                    url: redact(&url),
                    seconds: patience,
                });
            }
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> NetError {
    let path = path.to_owned();
    move |source| NetError::Io {
        doing: "read",
        path,
        source,
    }
}
