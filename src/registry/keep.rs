//! Credentials kept and forgotten as Docker does it (`docker login`, "Credential stores"): in the helper that its
//! `config.json` names for a host, else in the file itself, which its owner alone may read.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::credentials::key;
use super::{Credential, RegistryError, TOKEN_USER};

/// Where credentials are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In the file, in the clear but for base64.
    File,
    /// With this program (`docker-credential-…`).
    Helper(String),
}

/// Keeps `credential` for `host` where the `config.json` at `path` says, which is made if it is not there. Blocks: it may
/// run a helper.
///
/// # Errors
/// A file that cannot be read or written; a helper that fails. What the helper says is not repeated: it may be a secret.
pub fn keep(path: &Path, host: &str, credential: &Credential) -> Result<Kept, RegistryError> {
    let mut config = read(path, host)?;
    let key = key(&config, host, "");
    let (user, secret) = match credential {
        Credential::Password { user, password } => (user.as_str(), password),
        Credential::IdentityToken(token) => (TOKEN_USER, token),
    };
    let entry = match helper(&config, &key) {
        Some(name) => {
            let request = json!({"ServerURL": key, "Username": user, "Secret": secret});
            run(path, host, &name, "store", &request.to_string())?;
            // Docker's mark that the helper knows this host.
            write_entry(path, host, &mut config, &key, json!({}))?;
            return Ok(Kept::Helper(name));
        }
        None => match credential {
            Credential::Password { user, password } => json!({"auth": BASE64_STANDARD.encode(format!("{user}:{password}"))}),
            Credential::IdentityToken(token) => {
                json!({"auth": BASE64_STANDARD.encode(format!("{TOKEN_USER}:")), "identitytoken": token})
            }
        },
    };
    write_entry(path, host, &mut config, &key, entry)?;
    Ok(Kept::File)
}

/// Forgets what the `config.json` at `path` and its helper have for `host`; whether there was anything. Blocks: it may
/// run a helper.
///
/// # Errors
/// As [`keep`].
pub fn remove(path: &Path, host: &str) -> Result<bool, RegistryError> {
    let mut config = read(path, host)?;
    let key = key(&config, host, "");
    let mut found = false;
    if let Some(name) = helper(&config, &key)
        // Helpers differ in what they say of a host that they do not know: one that cannot give it has it not.
        && run(path, host, &name, "get", &key).is_ok()
    {
        run(path, host, &name, "erase", &key)?;
        found = true;
    }
    let entries = config.get_mut("auths").and_then(Value::as_object_mut);
    if entries.is_some_and(|entries| entries.shift_remove(&key).is_some()) {
        write(path, &config)?;
        found = true;
    }
    Ok(found)
}

/// The program that keeps the credentials of `key`: its own one, else the one for all.
fn helper(config: &Value, key: &str) -> Option<String> {
    let own = config["credHelpers"].get(key);
    let name = own.or_else(|| config.get("credsStore")).and_then(Value::as_str)?;
    (!name.is_empty()).then(|| format!("docker-credential-{name}"))
}

fn read(path: &Path, host: &str) -> Result<Value, RegistryError> {
    let config = match fs::read(path) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => json!({}),
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({}),
        Err(error) => return Err(RegistryError::io("read", path)(error)),
    };
    let sound = config.is_object() && config.get("auths").is_none_or(Value::is_object);
    sound
        .then_some(config)
        .ok_or_else(|| failed(path, host, "it is not the JSON that it should be".to_owned()))
}

fn write_entry(path: &Path, host: &str, config: &mut Value, key: &str, entry: Value) -> Result<(), RegistryError> {
    let entries = config
        .as_object_mut()
        .map(|config| config.entry("auths").or_insert_with(|| Map::new().into()));
    let Some(entries) = entries.and_then(Value::as_object_mut) else {
        return Err(failed(path, host, "it is not the JSON that it should be".to_owned()));
    };
    entries.insert(key.to_owned(), entry);
    write(path, config)
}

/// Whole or not at all, for its owner alone. A symbolic link stays one: what it points to is replaced.
fn write(path: &Path, config: &Value) -> Result<(), RegistryError> {
    let path = match fs::canonicalize(path) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(RegistryError::io("write", path)(error)),
    };
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(RegistryError::io("create", &folder))?;
    let text = format!("{config:#}\n");
    // Made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(RegistryError::io("create a file in", &folder))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.as_file().set_permissions(fs::Permissions::from_mode(0o600)))
        .and_then(|()| file.as_file().sync_all())
        .map_err(RegistryError::io("write", &path))?;
    file.persist(&path)
        .map_err(|error| RegistryError::io("write", &path)(error.error))?;
    Ok(())
}

/// A helper speaks on its standard input and output (docker-credential-helpers, "Development").
fn run(path: &Path, host: &str, name: &str, verb: &str, input: &str) -> Result<(), RegistryError> {
    let not_run = |error: io::Error| failed(path, host, format!("the credential helper {name} could not be run: {error}"));
    let mut child = Command::new(name)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(not_run)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    match stdin.write_all(input.as_bytes()) {
        // It has read what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.map_err(not_run)?,
    }
    drop(stdin);
    let status = child.wait().map_err(not_run)?;
    match status.success() {
        true => Ok(()),
        false => Err(failed(path, host, format!("the credential helper {name} failed ({status})"))),
    }
}

fn failed(path: &Path, host: &str, why: String) -> RegistryError {
    RegistryError::Keep {
        path: path.to_owned(),
        host: host.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Credentials;
    use super::*;

    fn ada() -> Credential {
        Credential::Password {
            user: "ada".to_owned(),
            password: "hush".to_owned(),
        }
    }

    #[test]
    fn what_is_kept_is_found_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.json");
        let credentials = Credentials::from_files(vec![path.clone()]);
        assert!(!remove(&path, "h.example").unwrap());
        assert!(!path.exists(), "nothing to forget, nothing to write");
        assert_eq!(keep(&path, "h.example", &ada()).unwrap(), Kept::File);
        assert_eq!(keep(&path, "docker.io", &ada()).unwrap(), Kept::File);
        assert_eq!(credentials.find("h.example", "").unwrap(), Some(ada()));
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(config["auths"]["https://index.docker.io/v1/"]["auth"], "YWRhOmh1c2g=");

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let real = dir.path().join("real.json");
        fs::write(
            &real,
            r#"{"proxies": {"x": 1}, "auths": {"i.example": {"auth": "Ym9iOnNlY3JldA=="}}}"#,
        )
        .unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&real, &path).unwrap();
        let token = Credential::IdentityToken("long".to_owned());
        keep(&path, "h.example", &token).unwrap();
        assert_eq!(credentials.find("h.example", "").unwrap(), Some(token));
        assert!(remove(&path, "h.example").unwrap());
        assert_eq!(credentials.find("h.example", "").unwrap(), None);
        let config: Value = serde_json::from_slice(&fs::read(&real).unwrap()).unwrap();
        assert_eq!(
            config,
            json!({"proxies": {"x": 1}, "auths": {"i.example": {"auth": "Ym9iOnNlY3JldA=="}}})
        );
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(mode(&real), 0o600);
    }

    #[test]
    fn a_file_or_a_helper_that_is_wrong_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in [
            "[]",
            "{",
            r#"{"auths": 1}"#,
            r#"{"credsStore": "dvrun-test-there-is-no-such-helper"}"#,
        ] {
            fs::write(&path, text).unwrap();
            let error = keep(&path, "h.example", &ada()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
