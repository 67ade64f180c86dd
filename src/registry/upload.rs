//! One blob into a registry (OCI distribution spec, "Pushing blobs"): taken from another repository where the registry can do
//! that, else sent in one stream, which goes on where it broke off if the registry says where that is.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, StatusCode, Url};

use super::auth::{Authorization, Subject};
use super::endpoint::Endpoint;
use super::named::Named;
use super::{RegistryError, Session};
use crate::net::{Answer, Event, NetError, Request, Upload};
use crate::oci::{Descriptor, Source};

/// How much of an answer is read, in bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// A blob that is to be in a registry.
#[derive(Clone, Copy, Debug)]
pub struct PushBlob<'a> {
    pub blob: &'a Descriptor,
    pub place: BlobPlace<'a>,
}

/// Where a blob is.
#[derive(Clone, Copy, Debug)]
pub enum BlobPlace<'a> {
    File(&'a Path),
    /// With its image: it is fetched only if the registry has not got it.
    Source(&'a Source),
}

/// Where to.
pub(super) struct Target<'a> {
    pub session: &'a Session<'a>,
    pub endpoint: &'a Endpoint,
    pub reference: Named<'a>,
    /// Another repository of the same registry, which has the blobs.
    pub from: Option<&'a str>,
}

/// What came of asking for an upload.
enum Begin {
    /// Nothing has to be sent.
    There,
    At(Begun),
}

/// An upload that the registry has begun.
struct Begun {
    url: Url,
    /// How many bytes the registry has of it.
    done: u64,
}

/// Why one try was not enough.
enum Broken {
    /// There are new credentials.
    Renewed,
    Failed(Box<Failed>),
}

struct Failed {
    error: RegistryError,
    /// Of the answer, if there was one.
    headers: HeaderMap,
    /// Whether another try may end otherwise.
    passing: bool,
}

impl Target<'_> {
    fn subject(&self) -> Subject<'_> {
        Subject::Push {
            reference: self.reference,
            from: self.from,
        }
    }

    /// A small request of this push.
    pub(super) async fn ask(&self, request: &Request, what: &str) -> Result<Answer, RegistryError> {
        self.session
            .authorized(self.endpoint, self.subject(), request, ANSWER_MAX, || what.to_owned())
            .await
    }

    /// Makes sure that the registry has the blob.
    pub(super) async fn blob(&self, push: PushBlob<'_>) -> Result<(), RegistryError> {
        let what = push.blob.digest.short();
        let begin = match self.has(push.blob).await? {
            true => Begin::There,
            false => self.mount(push.blob).await?,
        };
        let Begin::At(begun) = begin else {
            (self.session.progress)(Event::Present { what });
            return Ok(());
        };
        let path: PathBuf = match push.place {
            BlobPlace::File(path) => path.to_owned(),
            BlobPlace::Source(source) => self.session.blob(source, push.blob).await?,
        };
        self.send(push.blob, &path, begun).await
    }

    async fn has(&self, blob: &Descriptor) -> Result<bool, RegistryError> {
        let mut there = Request::get(self.endpoint.blob(self.reference.repository(), &blob.digest.to_string())?);
        there.method = Method::HEAD;
        match self.ask(&there, "whether it has a blob").await {
            Ok(_) => Ok(true),
            Err(RegistryError::Refused { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An upload; none where the registry could take the blob from another of its repositories.
    async fn mount(&self, blob: &Descriptor) -> Result<Begin, RegistryError> {
        let Some(from) = self.from else {
            return self.begin().await.map(Begin::At);
        };
        match self.post(Some(&format!("mount={}&from={from}", blob.digest))).await {
            Ok((_, answer)) if answer.status == StatusCode::CREATED => Ok(Begin::There),
            Ok((asked, answer)) => self.begun(&asked, &answer).map(Begin::At),
            // One that does not know it, or may not: as if it had not been asked.
            Err(RegistryError::Refused { .. }) => self.begin().await.map(Begin::At),
            Err(error) => Err(error),
        }
    }

    async fn begin(&self) -> Result<Begun, RegistryError> {
        let (asked, answer) = self.post(None).await?;
        self.begun(&asked, &answer)
    }

    async fn post(&self, query: Option<&str>) -> Result<(Url, Answer), RegistryError> {
        let mut url = self.endpoint.uploads(self.reference.repository())?;
        url.set_query(query);
        let mut begin = Request::get(url.clone());
        begin.method = Method::POST;
        begin.body = Some(Bytes::new());
        Ok((url, self.ask(&begin, "an upload").await?))
    }

    fn begun(&self, asked: &Url, answer: &Answer) -> Result<Begun, RegistryError> {
        let url = self.location(asked, &answer.headers)?.ok_or_else(|| self.nowhere())?;
        Ok(Begun { url, done: 0 })
    }

    fn nowhere(&self) -> RegistryError {
        RegistryError::NoUpload {
            image: self.reference.to_string(),
            host: self.endpoint.host.clone(),
        }
    }

    /// Where an upload goes on, if the answer says it. The image does not leave TLS.
    fn location(&self, asked: &Url, headers: &HeaderMap) -> Result<Option<Url>, RegistryError> {
        let Some(location) = headers.get(LOCATION) else { return Ok(None) };
        let url = location.to_str().ok().and_then(|location| asked.join(location).ok());
        match url.filter(|url| url.scheme() == "https" || (url.scheme() == "http" && asked.scheme() == "http")) {
            Some(url) => Ok(Some(url)),
            None => Err(self.nowhere()),
        }
    }

    /// Sends the file, again and again from where the registry has it, as long as that comes to something.
    async fn send(&self, blob: &Descriptor, path: &Path, begun: Begun) -> Result<(), RegistryError> {
        let progress = self.session.progress;
        let (what, size) = (blob.digest.short(), blob.size);
        progress(Event::Started {
            what,
            done: 0,
            total: Some(size),
        });
        let mut authorization = Authorization::new(self.endpoint, self.subject());
        let mut upload = Some(begun);
        let (mut failures, mut best) = (0, 0);
        loop {
            let mut begun = match upload {
                Some(begun) => begun,
                None => self.begin().await?,
            };
            match self.rest(&mut begun, blob, path, &mut authorization).await {
                Ok(()) => break,
                // The answer was lost on its way, and the blob is there.
                Err(_) if begun.done == size && self.has(blob).await? => break,
                Err(Broken::Renewed) => {}
                Err(Broken::Failed(failed)) => {
                    let Failed { error, headers, passing } = *failed;
                    failures += 1;
                    let wait = self.session.client.patience(failures, &headers).filter(|_| passing);
                    let Some(after) = wait else { return Err(error) };
                    let why = error.reason();
                    progress(Event::Retrying { what, why: &why, after });
                    tokio::time::sleep(after).await;
                }
            }
            upload = self.status(begun).await;
            let done = upload.as_ref().map_or(0, |begun| begun.done);
            progress(Event::Advanced { what, done });
            // A registry that takes a little each time is got through with.
            if done > best {
                (best, failures) = (done, 0);
            }
        }
        progress(Event::Finished { what, size });
        Ok(())
    }

    /// What is missing of an upload, and its end.
    async fn rest(&self, begun: &mut Begun, blob: &Descriptor, path: &Path, authorization: &mut Authorization<'_>) -> Result<(), Broken> {
        if begun.done < blob.size {
            let mut request = Request::get(begun.url.clone());
            request.method = Method::PATCH;
            if begun.done > 0 {
                let range = format!("{}-{}", begun.done, blob.size - 1);
                let range = HeaderValue::from_str(&range).expect("digits are a header value");
                request.headers.insert(CONTENT_RANGE, range);
            }
            let upload = Upload {
                what: blob.digest.short(),
                path,
                part: begun.done..blob.size,
            };
            let signed = self.sign(request, authorization).await;
            let sent = self.session.client.upload(signed, &upload, ANSWER_MAX, self.session.progress).await;
            let answer = self.accepted(sent, blob, authorization, begun).await?;
            begun.done = received(&answer.headers).unwrap_or(blob.size);
            if let Some(url) = self.location(&begun.url, &answer.headers).map_err(Broken::last)? {
                begun.url = url;
            }
            if begun.done != blob.size {
                let error = RegistryError::UploadLength {
                    host: self.endpoint.host.clone(),
                    digest: blob.digest.clone(),
                    done: begun.done,
                    size: blob.size,
                };
                return Err(Broken::failed(error, answer.headers, begun.done < blob.size));
            }
        }
        let mut url = begun.url.clone();
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let mut request = Request::get(url);
        request.method = Method::PUT;
        request.body = Some(Bytes::new());
        let signed = self.sign(request, authorization).await;
        let ended = self.session.client.read(&signed, ANSWER_MAX, self.session.progress).await;
        self.accepted(ended, blob, authorization, begun).await.map(drop)
    }

    /// With credentials, where the upload is the registry's own affair and no other server's.
    async fn sign(&self, request: Request, authorization: &mut Authorization<'_>) -> Request {
        match self.is_own(&request.url) {
            true => authorization.sign(self.session, &request).await,
            false => request,
        }
    }

    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.base.origin()
    }

    /// An answer of success.
    async fn accepted(
        &self,
        answer: Result<Answer, NetError>,
        blob: &Descriptor,
        authorization: &mut Authorization<'_>,
        begun: &Begun,
    ) -> Result<Answer, Broken> {
        let failed = |error: NetError| {
            let image = self.reference.to_string();
            RegistryError::net(format!("the new blob {}", blob.digest), image, &self.endpoint.host, error)
        };
        let answer = match answer {
            Ok(answer) if answer.status.is_success() => return Ok(answer),
            Ok(answer) => answer,
            Err(error) => {
                let passing = error.is_passing();
                return Err(Broken::failed(failed(error), HeaderMap::new(), passing));
            }
        };
        let renewed = self.is_own(&begun.url)
            && authorization
                .renew(self.session, answer.status, &answer.headers)
                .await
                .map_err(Broken::last)?;
        if renewed {
            return Err(Broken::Renewed);
        }
        // Forgotten, or at another byte than we thought: it is asked where it is.
        let lost = matches!(answer.status.as_u16(), 404 | 416);
        let (headers, passing) = (answer.headers.clone(), lost || answer.is_transient());
        Err(Broken::failed(failed(answer.refused()), headers, passing))
    }

    /// How far an upload is. `None`: it has to be begun anew, which is also what becomes of one whose registry gives no answer.
    async fn status(&self, begun: Begun) -> Option<Begun> {
        let request = Request::get(begun.url.clone());
        let answer = match self.is_own(&request.url) {
            true => self.ask(&request, "the state of an upload").await.ok()?,
            false => self.session.client.read(&request, ANSWER_MAX, self.session.progress).await.ok()?,
        };
        // `0-0` is one byte, or none: not worth the doubt.
        let done = received(&answer.headers).filter(|done| *done > 1 && answer.status.is_success())?;
        let url = self.location(&begun.url, &answer.headers).ok()?.unwrap_or(begun.url);
        Some(Begun { url, done })
    }
}

impl Broken {
    fn failed(error: RegistryError, headers: HeaderMap, passing: bool) -> Broken {
        Broken::Failed(Box::new(Failed { error, headers, passing }))
    }

    /// What no other try will change.
    fn last(error: RegistryError) -> Broken {
        Broken::failed(error, HeaderMap::new(), false)
    }
}

/// `Range: 0-LAST`, as registries answer it, as a number of bytes.
fn received(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?.trim();
    let (first, last) = text.strip_prefix("bytes=").unwrap_or(text).split_once('-')?;
    let last: u64 = last.parse().ok().filter(|_| first == "0")?;
    last.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, text.parse().unwrap());
            received(&headers)
        };
        assert_eq!((of("0-9"), of("bytes=0-9"), of("0-0")), (Some(10), Some(10), Some(1)));
        for bad in ["", "9", "1-9", "0-", "0--1", "0-18446744073709551615", "x-9"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
