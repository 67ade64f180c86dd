//! What TLS with one host wants beside what counts for all: authorities to trust, and a certificate of one's own. From the
//! configuration, or else from a folder as Docker ("Verify repository client with certificates") and containers-certs.d(5)
//! have it: `certs.d/HOST[:PORT]/` with `*.crt` (authorities), `*.cert` and its `*.key` (client certificates).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::{Certificate, ClientBuilder, Identity, Url};

use super::{NetError, Options};

/// Docker Hub's API answers elsewhere than its name says.
const HUB: (&str, &str) = ("registry-1.docker.io", "docker.io");

/// Files for one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostTls {
    pub authorities: Vec<PathBuf>,
    /// A certificate, and its key where that is another file.
    pub identity: Option<(PathBuf, Option<PathBuf>)>,
}

/// The host of a URL as settings and folders may name it, the likeliest first.
pub(super) fn names(url: &Url) -> Vec<String> {
    let host = url.host_str().unwrap_or_default();
    let host = if host == HUB.0 { HUB.1 } else { host };
    match url.port() {
        Some(port) => vec![format!("{host}:{port}")],
        // The scheme's own port, which a URL does not keep.
        None => vec![host.to_owned(), format!("{host}:443")],
    }
}

/// What there is for `url`'s host; nothing for most.
pub(super) fn find(options: &Options, url: &Url) -> Result<HostTls, NetError> {
    let names = names(url);
    let set = names.iter().find_map(|name| options.registries.get(name));
    if let Some(set) = set.filter(|set| !set.ca_certificates.is_empty() || set.client_certificate.is_some()) {
        let identity = set
            .client_certificate
            .clone()
            .map(|certificate| (certificate, set.client_key.clone()));
        return Ok(HostTls {
            authorities: set.ca_certificates.clone(),
            identity,
        });
    }
    for folder in &options.certificate_folders {
        for name in &names {
            // The first that is there counts, as with Podman.
            if let Some(found) = in_folder(&folder.join(name))? {
                return Ok(found);
            }
        }
    }
    Ok(HostTls::default())
}

fn in_folder(folder: &Path) -> Result<Option<HostTls>, NetError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // What only root may look into is not for us.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(folder)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(failed(folder))?.path());
    }
    paths.sort();
    let mut found = HostTls::default();
    for path in &paths {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("crt") => found.authorities.push(path.clone()),
            Some("cert") => {
                let key = path.with_extension("key");
                if !paths.contains(&key) {
                    return Err(NetError::NoKey {
                        certificate: path.clone(),
                        key,
                    });
                }
                found.identity.get_or_insert((path.clone(), Some(key)));
            }
            _ => {}
        }
    }
    Ok(Some(found))
}

/// Adds what there is to a client.
pub(super) fn apply(mut builder: ClientBuilder, tls: &HostTls) -> Result<ClientBuilder, NetError> {
    for path in &tls.authorities {
        let pem = read(path)?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(unusable(path))?;
        for certificate in certificates {
            builder = builder.add_root_certificate(certificate);
        }
    }
    if let Some((certificate, key)) = &tls.identity {
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        builder = builder.identity(Identity::from_pem(&pem).map_err(unusable(certificate))?);
    }
    Ok(builder)
}

fn read(path: &Path) -> Result<Vec<u8>, NetError> {
    fs::read(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let path = path.to_owned();
    move |source| NetError::Io {
        doing: "read",
        path,
        source,
    }
}

fn unusable(path: &Path) -> impl FnOnce(reqwest::Error) -> NetError {
    let path = path.to_owned();
    move |source| NetError::Certificate { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::RegistryOptions;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_by_the_names_that_people_give_them() {
        assert_eq!(names(&url("https://registry-1.docker.io/v2/")), ["docker.io", "docker.io:443"]);
        assert_eq!(names(&url("https://h.example:5000/v2/")), ["h.example:5000"]);
        assert_eq!(names(&url("https://h.example:443/v2/")), ["h.example", "h.example:443"]);
        assert_eq!(names(&url("https://[::1]:5000/v2/")), ["[::1]:5000"]);
    }

    #[test]
    fn the_configuration_then_the_first_folder() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        let mut options = Options {
            certificate_folders: vec![dir.path().join("missing"), one.clone(), other.clone()],
            ..Options::default()
        };
        let found = |options: &Options, text: &str| find(options, &url(text));
        assert_eq!(found(&options, "https://h.example/").unwrap(), HostTls::default());
        let theirs = other.join("h.example");
        fs::create_dir_all(&theirs).unwrap();
        for name in ["ca.crt", "client.cert", "client.key", "README"] {
            fs::write(theirs.join(name), "").unwrap();
        }
        let expected = HostTls {
            authorities: vec![theirs.join("ca.crt")],
            identity: Some((theirs.join("client.cert"), Some(theirs.join("client.key")))),
        };
        assert_eq!(found(&options, "https://h.example/v2/").unwrap(), expected);
        assert_eq!(
            found(&options, "https://h.example:5000/").unwrap(),
            HostTls::default(),
            "another port"
        );
        // The folder before it is there now, if empty.
        fs::create_dir_all(one.join("h.example:443")).unwrap();
        assert_eq!(found(&options, "https://h.example/").unwrap(), HostTls::default());
        let own = RegistryOptions {
            ca_certificates: vec!["/own.pem".into()],
            ..RegistryOptions::default()
        };
        options.registries.insert("h.example".to_owned(), own);
        assert_eq!(
            found(&options, "https://h.example/").unwrap().authorities,
            [PathBuf::from("/own.pem")]
        );
        fs::remove_file(theirs.join("client.key")).unwrap();
        options.registries.clear();
        options.certificate_folders = vec![other];
        let error = found(&options, "https://h.example/").unwrap_err();
        assert!(error.to_string().contains("client.key"), "{error}");
    }
}
