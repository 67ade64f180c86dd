//! For which registries there are credentials, and whose.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use indexmap::IndexMap;
use serde_json::Value;

use super::credentials::HUB_KEY;
use super::{Credential, Credentials, RegistryError};

/// Stands for a user whom only the registry knows.
pub const TOKEN_USER: &str = "<token>";

/// A registry, or a part of one, that one can log in to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLogin {
    /// Its host; Podman's files may have repositories, too.
    pub registry: String,
    /// [`TOKEN_USER`] where there is only a token.
    pub user: String,
    /// The file that has it, or that names the helper.
    pub file: PathBuf,
    /// The program that keeps it (`docker-credential-…`).
    pub helper: Option<String>,
}

impl Credentials {
    /// All that the files and their helpers have, in the order in which they count; each registry once. Blocks: it may run
    /// helpers.
    ///
    /// # Errors
    /// A file that cannot be read; a helper that fails.
    pub fn list(&self) -> Result<Vec<StoredLogin>, RegistryError> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        for file in self.files() {
            for login in in_file(file)? {
                if seen.insert(login.registry.clone()) {
                    found.push(login);
                }
            }
        }
        Ok(found)
    }
}

fn in_file(path: &Path) -> Result<Vec<StoredLogin>, RegistryError> {
    let failed = |why: &str| RegistryError::CredentialFile {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RegistryError::io("read", path)(error)),
    };
    let config: Value = serde_json::from_slice(&bytes).map_err(|_| failed("it is not the JSON that it should be"))?;
    let mut logins = Vec::new();
    let mut add = |registry: &str, user: String, helper: Option<String>| {
        logins.push(StoredLogin {
            registry: shown(registry),
            user,
            file: path.to_owned(),
            helper,
        });
    };
    for (registry, helper) in config["credHelpers"].as_object().into_iter().flatten() {
        let Some(helper) = helper.as_str() else { continue };
        let own = Credentials::from_files(vec![path.to_owned()]);
        // What is configured need not be stored.
        match own.find(registry, "")? {
            Some(Credential::Password { user, .. }) => add(registry, user, Some(program(helper))),
            Some(Credential::IdentityToken(_)) => add(registry, TOKEN_USER.to_owned(), Some(program(helper))),
            None => {}
        }
    }
    for (registry, entry) in config["auths"].as_object().into_iter().flatten() {
        let own = entry["identitytoken"].as_str().filter(|token| !token.is_empty());
        let user = match own {
            Some(_) => Some(TOKEN_USER.to_owned()),
            None => user(entry),
        };
        // An empty entry is Docker's mark of what a helper has.
        if let Some(user) = user {
            add(registry, user, None);
        }
    }
    if let Some(helper) = config["credsStore"].as_str().filter(|helper| !helper.is_empty()) {
        let program = program(helper);
        let users = ask(&program).map_err(|why| failed(&format!("the credential helper {program} {why}")))?;
        for (registry, user) in users {
            add(&registry, user, Some(program.clone()));
        }
    }
    Ok(logins)
}

fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// `auth` is `USER:PASSWORD` in base64.
fn user(entry: &Value) -> Option<String> {
    let decoded = entry["auth"].as_str().and_then(|auth| BASE64_STANDARD.decode(auth).ok());
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let user = text.as_deref().and_then(|text| text.split_once(':')).map(|(user, _)| user);
    user.or(entry["username"].as_str())
        .filter(|user| !user.is_empty())
        .map(str::to_owned)
}

/// As people call a registry.
fn shown(key: &str) -> String {
    if key == HUB_KEY {
        return "docker.io".to_owned();
    }
    let host = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    host.trim_end_matches('/').to_owned()
}

/// What a helper has: registry → user (docker-credential-helpers, "list").
fn ask(program: &str) -> Result<IndexMap<String, String>, &'static str> {
    let asked = Command::new(program)
        .arg("list")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|_| "could not be run")?;
    if !asked.status.success() {
        return Err("failed");
    }
    serde_json::from_slice(&asked.stdout).map_err(|_| "gave no list")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_registry_once_and_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let [docker, podman] = ["config.json", "auth.json"].map(|name| dir.path().join(name));
        let auth = |text: &str| json!({"auth": BASE64_STANDARD.encode(text)});
        let theirs = json!({"auths": {
            "https://index.docker.io/v1/": auth("ada:hush"), "quay.io": auth("bob:a:b"), "empty.example": {},
            "azure.example": {"auth": BASE64_STANDARD.encode("ada:"), "identitytoken": "hush"}, "nvcr.io": {"username": "$oauthtoken", "password": "hush"},
        }});
        fs::write(&docker, theirs.to_string()).unwrap();
        fs::write(
            &podman,
            json!({"auths": {"quay.io": auth("eve:hush"), "quay.io/lab": auth("eve:hush")}}).to_string(),
        )
        .unwrap();
        let credentials = Credentials::from_files(vec![dir.path().join("missing.json"), docker.clone(), podman]);
        let listed = credentials.list().unwrap();
        let texts: Vec<String> = listed.iter().map(|login| format!("{}={}", login.registry, login.user)).collect();
        assert_eq!(
            texts,
            [
                "docker.io=ada",
                "quay.io=bob",
                "azure.example=<token>",
                "nvcr.io=$oauthtoken",
                "quay.io/lab=eve"
            ]
        );
        assert!(!format!("{listed:?}").contains("hush"));
        fs::write(&docker, r#"{"credsStore": "dvrun-test-there-is-no-such-helper"}"#).unwrap();
        let error = credentials.list().unwrap_err().to_string();
        assert!(error.contains("there-is-no-such-helper could not be run"), "{error}");
        fs::write(&docker, "{").unwrap();
        credentials.list().unwrap_err();
    }
}
