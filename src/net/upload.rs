//! Files as request bodies, read while they are sent.

use std::io::SeekFrom;
use std::path::Path;

use bytes::Bytes;
use futures_util::stream;
use reqwest::Body;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Answer, Client, Event, NetError, Progress, Request};

/// How much is read at a time, in bytes.
const PIECE: usize = 256 << 10;

impl Client {
    /// Sends `request` once with the `size` bytes of a file as its body, and reads an answer of at most `limit` bytes. Any
    /// status is an answer. Not repeated: what a server has of a broken upload is its own affair.
    pub async fn upload(
        &self,
        mut request: Request,
        what: &str,
        path: &Path,
        size: u64,
        limit: u64,
        progress: Progress<'_>,
    ) -> Result<Answer, NetError> {
        let mut file = File::open(path).await.map_err(failed(path))?;
        file.seek(SeekFrom::Start(0)).await.map_err(failed(path))?;
        progress(Event::Started {
            what,
            done: 0,
            total: Some(size),
        });
        let pieces = stream::try_unfold((file, size), |(mut file, left)| async move {
            if left == 0 {
                return Ok::<_, std::io::Error>(None);
            }
            let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
            let read = file.read(&mut piece).await?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            piece.truncate(read);
            Ok(Some((Bytes::from(piece), (file, left - read as u64))))
        });
        request.headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
        request
            .headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let reply = self.once_with(&request, Some(Body::wrap_stream(pieces))).await?;
        let answer = reply.read(limit).await?;
        if answer.status.is_success() {
            progress(Event::Finished { what, size });
        }
        Ok(answer)
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
