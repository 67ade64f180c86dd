//! Who the user is to registries: the files of Docker and Podman, as the environment says where they are.

use std::env;
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{Failure, exit};
use crate::registry::{Credentials, Registry, RegistryError};

/// Which registry `login` and `logout` are about.
#[derive(Args)]
pub struct At {
    /// The registry's host, as in ghcr.io or 127.0.0.1:5000
    #[arg(default_value = "docker.io")]
    registry: String,
}

impl At {
    /// # Errors
    /// What is no registry's name.
    pub fn registry(&self) -> Result<Registry, Failure> {
        registry(&self.registry)
    }
}

/// # Errors
/// What is no registry's name.
pub fn registry(text: &str) -> Result<Registry, Failure> {
    text.parse().map_err(|error: RegistryError| {
        let hint = error.hint();
        Failure::new(exit::USAGE, &error, hint)
    })
}

/// What all commands log in with. `home` is the user's, if there is one.
pub fn known(home: Option<&Path>) -> Credentials {
    Credentials::from_files(files(home, |name| env::var_os(name).map(PathBuf::from)))
}

/// Docker's file, which `login` writes to.
///
/// # Errors
/// Neither HOME nor DOCKER_CONFIG is set.
pub fn docker(home: Option<&Path>) -> Result<PathBuf, Failure> {
    docker_file(home, env::var_os("DOCKER_CONFIG").map(PathBuf::from)).ok_or_else(|| {
        Failure::message(exit::USAGE, "there is no place for credentials: HOME is not set").hint("set HOME or DOCKER_CONFIG")
    })
}

/// The first one that knows a registry counts: Docker's (docker-login), then Podman's (containers-auth.json).
fn files(home: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let auth = |folder: PathBuf| folder.join("containers/auth.json");
    let config = variable("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let mut files = Vec::from_iter(docker_file(home, variable("DOCKER_CONFIG")));
    files.extend(variable("REGISTRY_AUTH_FILE").filter(|path| !path.as_os_str().is_empty()));
    files.extend(variable("XDG_RUNTIME_DIR").filter(|path| path.is_absolute()).map(auth));
    files.extend(config.or_else(|| Some(home?.join(".config"))).map(auth));
    files
}

fn docker_file(home: Option<&Path>, folder: Option<PathBuf>) -> Option<PathBuf> {
    let folder = folder.filter(|path| !path.as_os_str().is_empty());
    Some(folder.or_else(|| Some(home?.join(".docker")))?.join("config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_credentials_may_be() {
        let home = Some(Path::new("/home/ada"));
        let of = |set: &[(&str, &str)]| {
            let files = files(home, |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()));
            let texts: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            texts.join(" ")
        };
        assert_eq!(of(&[]), "/home/ada/.docker/config.json /home/ada/.config/containers/auth.json");
        let all = [
            ("DOCKER_CONFIG", "/d"),
            ("REGISTRY_AUTH_FILE", "/r.json"),
            ("XDG_RUNTIME_DIR", "/run/1"),
            ("XDG_CONFIG_HOME", "/c"),
        ];
        assert_eq!(
            of(&all),
            "/d/config.json /r.json /run/1/containers/auth.json /c/containers/auth.json"
        );
        let empty = [("DOCKER_CONFIG", ""), ("REGISTRY_AUTH_FILE", ""), ("XDG_RUNTIME_DIR", "")];
        assert_eq!(of(&empty), of(&[]));
    }
}
