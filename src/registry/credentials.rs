//! Who one is to a registry: told by the caller, or kept where Docker and Podman keep it.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde_json::Value;

use super::{RegistryError, TOKEN_USER};

/// Under which Docker keeps its own registry's credentials.
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What one logs in with. Its debug text shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// For OAuth2: exchanged for tokens (`docker login` through a browser, Azure, Artifactory).
    IdentityToken(String),
}

/// Credentials by registry host, as references name it; then files in the manner of Docker's `config.json`.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    by_host: HashMap<String, Credential>,
    files: Vec<PathBuf>,
}

impl Credentials {
    /// Anonymous everywhere.
    pub fn none() -> Credentials {
        Credentials::default()
    }

    /// From Docker's or Podman's files (`config.json`, `auth.json`), the first that has an answer; those that do not
    /// exist are passed over. The credential helpers that they name are run when they are needed.
    pub fn from_files(files: Vec<PathBuf>) -> Credentials {
        Credentials {
            by_host: HashMap::new(),
            files,
        }
    }

    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Goes before what the files say.
    pub fn insert(&mut self, host: &str, credential: Credential) {
        self.by_host.insert(host.to_owned(), credential);
    }

    /// The credential for a repository on `host`, or, with an empty one, for the host itself. Blocks: it may run a helper.
    pub fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>, RegistryError> {
        if let Some(credential) = self.by_host.get(host) {
            return Ok(Some(credential.clone()));
        }
        for file in &self.files {
            if let Some(credential) = from_file(file, host, repository)? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }
}

fn from_file(path: &Path, host: &str, repository: &str) -> Result<Option<Credential>, RegistryError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RegistryError::io("read", path)(error)),
    };
    let failed = |why: String| RegistryError::Credentials {
        path: path.to_owned(),
        host: host.to_owned(),
        why,
    };
    let config: Value = serde_json::from_slice(&bytes).map_err(|_| failed("it is not the JSON that it should be".to_owned()))?;
    let key = key(&config, host, repository);
    match docker_credential::get_credential_from_reader(bytes.as_slice(), &key) {
        Ok(DockerCredential::UsernamePassword(user, password)) if user.is_empty() && password.is_empty() => Ok(None),
        // Docker's way to keep an identity token with a user's name.
        Ok(DockerCredential::UsernamePassword(user, password)) if user == TOKEN_USER => Ok(Some(Credential::IdentityToken(password))),
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Some(Credential::Password { user, password })),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credential::IdentityToken(token))),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // What helpers say of a server that they do not know.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => Ok(None),
        // Without what the helper printed: it may be a secret.
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => Err(failed(format!("the credential helper {helper} failed"))),
        Err(CredentialRetrievalError::HelperCommunicationError) => Err(failed("its credential helper could not be run".to_owned())),
        Err(CredentialRetrievalError::MalformedHelperResponse) => Err(failed("its credential helper gave no credential".to_owned())),
        Err(_) => Err(failed("what it says of that host cannot be read".to_owned())),
    }
}

/// The key that fits best: Podman's may name a repository or a part of its path, Docker's name the host.
pub(super) fn key(config: &Value, host: &str, repository: &str) -> String {
    let mut scope = format!("{host}/{repository}");
    while let Some((shorter, _)) = scope.rsplit_once('/') {
        if config["auths"].get(&scope).is_some() {
            return scope;
        }
        scope = shorter.to_owned();
    }
    if host == "docker.io" && config["credHelpers"].get(host).is_none() {
        return HUB_KEY.to_owned();
    }
    host.to_owned()
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Credential::IdentityToken(_) => f.write_str("IdentityToken(…)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oci::Reference;

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }

    fn found(config: &Value, host: &str, reference: &str) -> Result<Option<Credential>, RegistryError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, config.to_string()).unwrap();
        let missing = dir.path().join("missing.json");
        Credentials::from_files(vec![missing, path]).find(host, reference.parse::<Reference>().unwrap().repository())
    }

    #[test]
    fn secrets_are_not_in_debug_texts() {
        let mut credentials = Credentials::none();
        credentials.insert("h.example", password("ada", "hush"));
        credentials.insert("i.example", Credential::IdentityToken("hush".to_owned()));
        let text = format!("{credentials:?}");
        assert!(text.contains("ada") && !text.contains("hush"), "{text}");
        assert_eq!(credentials.find("h.example", "x").unwrap(), Some(password("ada", "hush")));
        assert_eq!(credentials.find("x.example", "x").unwrap(), None);
    }

    #[test]
    fn dockers_and_podmans_keys() {
        // ada:hush, bob:secret
        let (ada, bob) = (json!({"auth": "YWRhOmh1c2g="}), json!({"auth": "Ym9iOnNlY3JldA=="}));
        let config = json!({"auths": {
            "https://index.docker.io/v1/": ada, "quay.io": ada, "quay.io/lab": bob, "quay.io/lab/deep/x": ada,
            "nvcr.io": {"username": "$oauthtoken", "password": "key"}, "azure.example": {"auth": "YWRhOmh1c2g=", "identitytoken": "long"},
            "old.example": {"auth": "PHRva2VuPjpsb25n"}, "127.0.0.1:5000": bob, "empty.example": {},
        }});
        let (ada, bob) = (password("ada", "hush"), password("bob", "secret"));
        let identity = Credential::IdentityToken("long".to_owned());
        for (host, reference, expected) in [
            ("docker.io", "debian", Some(&ada)),
            ("quay.io", "quay.io/other/x", Some(&ada)),
            ("quay.io", "quay.io/lab/x", Some(&bob)),
            ("quay.io", "quay.io/lab/deep/x", Some(&ada)),
            ("nvcr.io", "nvcr.io/x", Some(&password("$oauthtoken", "key"))),
            ("azure.example", "azure.example/x", Some(&identity)),
            ("old.example", "old.example/x", Some(&identity)),
            ("127.0.0.1:5000", "127.0.0.1:5000/x", Some(&bob)),
            ("empty.example", "empty.example/x", None),
            ("gcr.io", "gcr.io/x", None),
        ] {
            assert_eq!(found(&config, host, reference).unwrap().as_ref(), expected, "{reference}");
        }
        // Docker Hub's helper goes by its host, its password by its old URL.
        assert_eq!(key(&config, "docker.io", "library/debian"), HUB_KEY);
        let config = json!({"credHelpers": {"docker.io": "pass"}});
        assert_eq!(key(&config, "docker.io", "library/debian"), "docker.io");
    }

    #[test]
    fn what_cannot_be_read_is_an_error_without_a_secret() {
        for config in [
            json!({"auths": {"h.example": {"auth": "hush!"}}}),
            json!({"credHelpers": {"h.example": "dvrun-test-there-is-no-such-helper"}}),
            json!({"credsStore": "dvrun-test-there-is-no-such-helper"}),
            json!({"auths": 1}),
        ] {
            let error = found(&config, "h.example", "h.example/x").unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("h.example") && !text.contains("hush"), "{text}");
        }
    }
}
