//! A registry's two kinds of answers: manifests, and blobs into files.

use std::path::Path;

use reqwest::header::{ACCEPT, CONTENT_LENGTH, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};

use super::auth::{Authorization, Subject};
use super::blob::OnWhole;
use super::endpoint::Endpoint;
use super::named::Named;
use super::{RegistryError, Session};
use crate::net::{Answer, Content, Download, Event, NetError, Request};
use crate::oci::{self, Descriptor, Digest, Hasher, MANIFEST_MAX};

/// Whether a body is only hashed, or must have a certain sum.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect<'a> {
    Anything,
    Digest(&'a Digest),
}

impl Session<'_> {
    /// The manifest that `ask`, a tag or a digest, names in the repository of `reference`, with its digest. What the
    /// registry says in `Docker-Content-Digest` does not count: the body is hashed.
    pub(super) async fn remote_manifest(
        &self,
        reference: Named<'_>,
        ask: &str,
        expect: Expect<'_>,
    ) -> Result<(Digest, Vec<u8>), RegistryError> {
        let endpoints = self.endpoints(&reference).await?;
        self.first_of(&endpoints, async |endpoint| {
            self.manifest_at(endpoint, reference, ask, expect).await
        })
        .await
    }

    async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        reference: Named<'_>,
        ask: &str,
        expect: Expect<'_>,
    ) -> Result<(Digest, Vec<u8>), RegistryError> {
        let what = || format!("the manifest {ask}");
        let image = || reference.to_string();
        let mut request =
            Request::get(endpoint.manifest(reference.repository(), ask)?).header(ACCEPT, HeaderValue::from_static(oci::ACCEPT));
        if let Expect::Digest(_) = expect {
            request.content = Content::Verified;
        }
        let answer = self
            .authorized(endpoint, Subject::Repository(reference), &request, MANIFEST_MAX, what)
            .await?;
        let manifest = oci::signed_payload(&answer.body).map_err(|source| RegistryError::Manifest { image: image(), source })?;
        let digest = match expect {
            Expect::Anything => Digest::sha256(&manifest),
            Expect::Digest(expected) => {
                let mut hasher = Hasher::new(expected.algorithm());
                hasher.update(&manifest);
                let actual = hasher.finish();
                if actual != *expected {
                    return Err(RegistryError::Mismatch {
                        image: image(),
                        host: endpoint.host.clone(),
                        expected: expected.clone(),
                        actual,
                    });
                }
                actual
            }
        };
        Ok((digest, manifest.into_owned()))
    }

    /// The length of a blob that no manifest tells (schema 1), as the registry says it.
    pub(super) async fn remote_size(&self, reference: Named<'_>, digest: &Digest) -> Result<u64, RegistryError> {
        let endpoints = self.endpoints(&reference).await?;
        self.first_of(&endpoints, async |endpoint| {
            let what = || format!("the size of the blob {digest}");
            let image = || reference.to_string();
            let mut request = Request::get(endpoint.blob(reference.repository(), &digest.to_string())?);
            request.method = Method::HEAD;
            let answer = self.authorized(endpoint, Subject::Repository(reference), &request, 0, what).await?;
            let length = answer
                .headers
                .get(CONTENT_LENGTH)
                .and_then(|length| length.to_str().ok()?.parse().ok());
            length.ok_or_else(|| RegistryError::NoSize {
                image: image(),
                digest: digest.clone(),
            })
        })
        .await
    }

    /// At most the first `length` bytes of a blob, unverified; `None` where the server gives the whole or nothing.
    pub(super) async fn blob_head(&self, reference: Named<'_>, blob: &Descriptor, length: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let endpoints = self.endpoints(&reference).await?;
        let length = length.min(blob.size).max(1);
        let range = HeaderValue::from_str(&format!("bytes=0-{}", length - 1)).expect("digits are a header value");
        self.first_of(&endpoints, async |endpoint| {
            let url = endpoint.blob(reference.repository(), &blob.digest.to_string())?;
            let request = Request::get(url).header(RANGE, range.clone());
            let what = || format!("the beginning of the blob {}", blob.digest);
            let subject = Subject::Repository(reference);
            match self.authorized(endpoint, subject, &request, length, what).await {
                Ok(answer) if answer.status == StatusCode::PARTIAL_CONTENT || blob.size <= length => Ok(Some(answer.body.to_vec())),
                Ok(_) => Ok(None),
                Err(RegistryError::Net { source, .. }) if matches!(*source, NetError::TooLong { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// A small answer of success, logged in as far as the registry wants it.
    pub(super) async fn authorized(
        &self,
        endpoint: &Endpoint,
        subject: Subject<'_>,
        request: &Request,
        limit: u64,
        what: impl Fn() -> String,
    ) -> Result<Answer, RegistryError> {
        let failed = |error| RegistryError::net(what(), subject.name(), &endpoint.host, error);
        let mut authorization = Authorization::new(endpoint, subject);
        loop {
            let signed = authorization.sign(self, request).await;
            let answer = self.client.read(&signed, limit, self.progress).await.map_err(failed)?;
            if answer.status.is_success() {
                return Ok(answer);
            }
            if !authorization.renew(self, answer.status, &answer.headers).await? {
                return Err(failed(answer.refused()));
            }
        }
    }

    /// A blob into the file at `partial`, told to `whole` before it is synced: from the registry's servers, and a foreign one from where it says it is.
    pub(super) async fn remote_blob(
        &self,
        reference: Named<'_>,
        blob: &Descriptor,
        partial: &Path,
        whole: OnWhole<'_>,
    ) -> Result<(), RegistryError> {
        let endpoints = self.endpoints(&reference).await?;
        let from_registry = self
            .first_of(&endpoints, async |endpoint| {
                self.blob_at(endpoint, reference, blob, partial, whole).await
            })
            .await;
        let Err(mut error) = from_registry else {
            return Ok(());
        };
        for url in blob.urls.iter().filter_map(|url| Url::parse(url).ok()) {
            if !matches!(url.scheme(), "http" | "https") {
                continue;
            }
            let host = url.host_str().unwrap_or_default().to_owned();
            // Never with credentials: whoever made the image chose this URL (CVE-2020-15157).
            match self
                .client
                .download_and(&download(Request::get(url), blob, partial), self.progress, || whole(partial))
                .await
            {
                Ok(_) => return Ok(()),
                Err(source) => error = blob_error(reference, blob, &host, source),
            }
        }
        Err(error)
    }

    async fn blob_at(
        &self,
        endpoint: &Endpoint,
        reference: Named<'_>,
        blob: &Descriptor,
        partial: &Path,
        whole: OnWhole<'_>,
    ) -> Result<(), RegistryError> {
        let request = Request::get(endpoint.blob(reference.repository(), &blob.digest.to_string())?);
        let mut authorization = Authorization::new(endpoint, Subject::Repository(reference));
        loop {
            let signed = authorization.sign(self, &request).await;
            let wanted = download(signed, blob, partial);
            let error = match self.client.download_and(&wanted, self.progress, || whole(partial)).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let renewed = match error.refusal() {
                Some(refusal) => authorization.renew(self, refusal.status, &refusal.headers).await?,
                None => false,
            };
            if !renewed {
                return Err(blob_error(reference, blob, &endpoint.host, error));
            }
        }
    }

    /// The first success; else the last endpoint's error, the registry's own.
    pub(super) async fn first_of<T>(
        &self,
        endpoints: &[Endpoint],
        ask: impl AsyncFn(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut endpoints = endpoints.iter();
        let mut result = ask(endpoints.next().expect("the registry itself is an endpoint")).await;
        for endpoint in endpoints {
            let Err(error) = &result else { break };
            (self.progress)(Event::Note {
                what: &endpoint.host,
                text: &format!("asked instead of a mirror: {error}"),
            });
            result = ask(endpoint).await;
        }
        result
    }
}

fn download<'a>(request: Request, blob: &'a Descriptor, partial: &'a Path) -> Download<'a> {
    Download {
        request,
        what: blob.digest.short(),
        digest: Some(&blob.digest),
        size: Some(blob.size),
        partial,
    }
}

fn blob_error(reference: Named<'_>, blob: &Descriptor, host: &str, source: crate::net::NetError) -> RegistryError {
    RegistryError::net(format!("the blob {}", blob.digest), reference.to_string(), host, source)
}
