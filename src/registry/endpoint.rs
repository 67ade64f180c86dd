//! Where a registry answers: its mirrors in turn, then itself.

use reqwest::Url;

use super::{RegistryError, Session};
use crate::net::is_loopback;
use crate::oci::Reference;

/// One server that may have a repository.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Endpoint {
    /// What `v2/…` is joined to; ends with a slash.
    pub base: Url,
    /// Whose credentials it gets: a mirror is another server than the registry.
    pub host: String,
}

impl Endpoint {
    pub(super) fn manifest(&self, repository: &str, ask: &str) -> Result<Url, RegistryError> {
        self.url(&format!("v2/{repository}/manifests/{ask}"))
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Result<Url, RegistryError> {
        self.url(&format!("v2/{repository}/blobs/{digest}"))
    }

    pub(super) fn uploads(&self, repository: &str) -> Result<Url, RegistryError> {
        self.url(&format!("v2/{repository}/blobs/uploads/"))
    }

    pub(super) fn tags(&self, repository: &str) -> Result<Url, RegistryError> {
        self.url(&format!("v2/{repository}/tags/list?n=1000"))
    }

    pub(super) fn ping(&self) -> Result<Url, RegistryError> {
        self.url("v2/")
    }

    fn url(&self, path: &str) -> Result<Url, RegistryError> {
        // Parsed as a whole: joined, a `:` in the first part would make a scheme of it.
        parse(&format!("{}{path}", self.base))
    }
}

impl Session<'_> {
    /// The servers to ask for `reference`, best first. The last one is the registry itself.
    pub(super) async fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistryError> {
        let settings = self.client.options().registries.get(reference.host());
        let mut endpoints = Vec::new();
        for mirror in settings.map(|settings| settings.mirrors.as_slice()).unwrap_or_default() {
            let base = base(mirror)?;
            let host = match base.port() {
                Some(port) => format!("{}:{port}", base.host_str().unwrap_or_default()),
                None => base.host_str().unwrap_or_default().to_owned(),
            };
            endpoints.push(Endpoint { base, host });
        }
        endpoints.push(self.origin(reference).await?);
        Ok(endpoints)
    }

    /// The registry of `reference` itself, no mirror.
    pub(super) async fn origin(&self, reference: &Reference) -> Result<Endpoint, RegistryError> {
        let settings = self.client.options().registries.get(reference.host());
        let host = reference.api_host();
        let scheme = if settings.is_some_and(|settings| settings.http) {
            "http"
        } else if is_loopback(host) {
            self.loopback_scheme(host).await?
        } else {
            "https"
        };
        Ok(Endpoint {
            base: base(&format!("{scheme}://{host}"))?,
            host: reference.host().to_owned(),
        })
    }

    /// A registry on this machine may speak plain HTTP without being declared so: what is not TLS, is.
    async fn loopback_scheme(&self, host: &str) -> Result<&'static str, RegistryError> {
        let mut schemes = self.schemes.lock().await;
        if let Some(scheme) = schemes.get(host) {
            return Ok(scheme);
        }
        let ping = parse(&format!("https://{host}/v2/"))?;
        let scheme = if self.client.speaks_tls(ping).await { "https" } else { "http" };
        schemes.insert(host.to_owned(), scheme);
        Ok(scheme)
    }
}

fn base(text: &str) -> Result<Url, RegistryError> {
    let url = parse(&format!("{}/", text.trim_end_matches('/')))?;
    let plain = url.query().is_none() && url.fragment().is_none() && matches!(url.scheme(), "http" | "https");
    if plain {
        Ok(url)
    } else {
        Err(RegistryError::Setting { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Result<Url, RegistryError> {
    Url::parse(text).map_err(|_| RegistryError::Setting { text: text.to_owned() })
}
