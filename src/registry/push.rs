//! Images and files into a registry (OCI distribution spec, "Push"): blobs that are not there yet, then the manifest.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};
use tokio::task;

use super::auth::{Authorization, Subject};
use super::endpoint::Endpoint;
use super::layout::MANIFEST;
use super::modern::from_schema1;
use super::{Pulled, RegistryError, Resolved, Session};
use crate::net::{Answer, Event, Request};
use crate::oci::{Digest, Reference};

/// How much of an answer to an upload is read, in bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// How often an upload that breaks is begun anew.
const UPLOADS_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// A blob on this machine that is to be in a registry.
#[derive(Clone, Copy, Debug)]
pub struct LocalBlob<'a> {
    pub digest: &'a Digest,
    /// In bytes.
    pub size: u64,
    pub path: &'a Path,
}

/// Puts blobs and then `manifest` into the repository of `reference`, under its tag, or `latest` where it names none.
/// Blobs that are there are not sent.
///
/// # Errors
/// The registry's refusal; what the network or the disk say.
pub async fn push(
    session: &Session<'_>,
    reference: &Reference,
    blobs: &[LocalBlob<'_>],
    manifest: &[u8],
    media_type: &str,
) -> Result<Digest, RegistryError> {
    let endpoint = session.origin(reference).await?;
    let target = Target {
        session,
        endpoint: &endpoint,
        reference,
    };
    stream::iter(blobs)
        .map(async |blob| target.blob(blob).await)
        .buffer_unordered(session.client.options().connections.max(1))
        .try_collect::<()>()
        .await?;
    let wrong = || RegistryError::Setting {
        text: media_type.to_owned(),
    };
    let mut request = Request::get(endpoint.manifest(reference.repository(), &reference.to_ask())?);
    request = request.header(CONTENT_TYPE, HeaderValue::from_str(media_type).map_err(|_| wrong())?);
    request.method = Method::PUT;
    request.body = Some(Bytes::copy_from_slice(manifest));
    target.ask(&request, "the new manifest").await?;
    Ok(Digest::sha256(manifest))
}

/// Puts a pulled image into the repository of `reference`, byte for byte; a schema 1 image as the OCI image that it
/// becomes. Gives the manifest's digest.
///
/// # Errors
/// As [`push`].
pub async fn push_image(
    session: &Session<'_>,
    resolved: &Resolved,
    pulled: &Pulled,
    reference: &Reference,
) -> Result<Digest, RegistryError> {
    let modern = {
        let (resolved, pulled) = (resolved.clone(), pulled.clone());
        let made = task::spawn_blocking(move || from_schema1(&resolved, &pulled)).await;
        made.expect("the thread neither panics nor is cancelled")
            .map_err(RegistryError::io("read", session.store.root()))?
    };
    let (config, size, config_path, manifest) = match modern {
        Some(made) => {
            let digest = Digest::sha256(&made.config);
            let path = session.store.write_blob(&digest, &made.config)?;
            (digest, made.config.len() as u64, path, made.manifest)
        }
        None => {
            let path = session.blob(&resolved.source, &resolved.config).await?;
            (
                resolved.config.digest.clone(),
                resolved.config.size,
                path,
                resolved.manifest.clone(),
            )
        }
    };
    let mut blobs: Vec<LocalBlob<'_>> = resolved
        .layers
        .iter()
        .zip(&pulled.layers)
        .map(|(layer, path)| LocalBlob {
            digest: &layer.digest,
            size: layer.size,
            path,
        })
        .collect();
    blobs.push(LocalBlob {
        digest: &config,
        size,
        path: &config_path,
    });
    blobs.sort_by_key(|blob| blob.digest);
    blobs.dedup_by_key(|blob| blob.digest);
    let kind: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
    let media_type = kind["mediaType"].as_str().unwrap_or(MANIFEST);
    push(session, reference, &blobs, &manifest, media_type).await
}

struct Target<'a> {
    session: &'a Session<'a>,
    endpoint: &'a Endpoint,
    reference: &'a Reference,
}

impl Target<'_> {
    async fn ask(&self, request: &Request, what: &str) -> Result<Answer, RegistryError> {
        let subject = Subject::Repository(self.reference);
        self.session
            .authorized(self.endpoint, subject, request, ANSWER_MAX, || what.to_owned())
            .await
    }

    async fn blob(&self, blob: &LocalBlob<'_>) -> Result<(), RegistryError> {
        let repository = self.reference.repository();
        let mut there = Request::get(self.endpoint.blob(repository, &blob.digest.to_string())?);
        there.method = Method::HEAD;
        match self.ask(&there, "whether it has a blob").await {
            Ok(_) => {
                let what = blob.digest.short();
                (self.session.progress)(Event::Present { what });
                return Ok(());
            }
            Err(RegistryError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.upload(blob).await {
                Err(error) if tries < UPLOADS_MAX && is_passing(&error) => {
                    let (what, why) = (blob.digest.short(), error.to_string());
                    let why = why.as_str();
                    (self.session.progress)(Event::Retrying { what, why, after: PAUSE });
                    tokio::time::sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// A whole upload: where to, and then all of it.
    async fn upload(&self, blob: &LocalBlob<'_>) -> Result<(), RegistryError> {
        let mut begin = Request::get(self.endpoint.uploads(self.reference.repository())?);
        begin.method = Method::POST;
        begin.body = Some(Bytes::new());
        let begun = self.ask(&begin, "an upload").await?;
        let wrong = || RegistryError::NoUpload {
            image: format!("docker://{}", self.reference),
            host: self.endpoint.host.clone(),
        };
        let location = begun.headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let mut url: Url = location
            .and_then(|location| begin.url.join(location).ok())
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(wrong)?;
        // Credentials stay with the registry, the image does not leave TLS.
        let own = url.origin() == begin.url.origin();
        if begin.url.scheme() == "https" && url.scheme() == "http" {
            return Err(wrong());
        }
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let mut request = Request::get(url);
        request.method = Method::PUT;
        let mut authorization = Authorization::new(self.endpoint, Subject::Repository(self.reference));
        let failed = |error| {
            let image = format!("docker://{}", self.reference);
            RegistryError::net(format!("the new blob {}", blob.digest), image, &self.endpoint.host, error)
        };
        loop {
            let signed = if own {
                authorization.sign(self.session, &request).await
            } else {
                request.clone()
            };
            let what = blob.digest.short();
            let client = self.session.client;
            let sent = client.upload(signed, what, blob.path, blob.size, ANSWER_MAX, self.session.progress);
            let answer = sent.await.map_err(failed)?;
            if answer.status.is_success() {
                return Ok(());
            }
            if !own || !authorization.renew(self.session, answer.status, &answer.headers).await? {
                return Err(failed(answer.refused()));
            }
        }
    }
}

/// Whether another upload may end otherwise.
fn is_passing(error: &RegistryError) -> bool {
    match error {
        RegistryError::Net { .. } => true,
        RegistryError::Refused { status, .. } => {
            StatusCode::from_u16(*status).is_ok_and(|status| status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS)
        }
        _ => false,
    }
}
