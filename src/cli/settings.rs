//! The configuration file and the environment, read once.
//!
//! `/etc/dvrun/config.yaml`, then the user's `config.yaml` (keys given there win, maps are joined); or the file named by
//! `--config` alone.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::args::Global;
use super::failure::{Failure, exit};
use super::preparation::{PrepareJob, Where};
use crate::engine::slurm::{Program, Slurm, SlurmProfile};
use crate::net;
use crate::runtime::{ImageAccess, ReadAhead};
use crate::store::Store;
use crate::workflow::units::Seconds;

/// `config.yaml`. README.md has an example.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    /// The cache folder, with its store.
    cache: Option<PathBuf>,
    /// Where tasks get their private `/tmp`; `TMPDIR` or `/tmp` otherwise.
    scratch: Option<PathBuf>,
    /// Where the layers of an image that is being converted lie uncompressed; in the cache folder otherwise.
    spool: Option<PathBuf>,
    runtime: RuntimeFile,
    /// How long a tag's digest is believed without asking again.
    tag_ttl: Option<String>,
    /// URL prefix → what stands in its place.
    #[serde(deserialize_with = "net::replacements")]
    mirrors: IndexMap<String, String>,
    registries: IndexMap<String, net::RegistryOptions>,
    network: Option<net::Options>,
    /// The profile to use where `--profile` names none.
    profile: Option<String>,
    profiles: IndexMap<String, Profile>,
}

/// The part `runtime`.
/// How containers are run: what runs those of tasks (`runtime: apptainer`), or all of it (`runtime: {name: …, image_access: …}`).
#[derive(Clone, Debug, Default)]
struct RuntimeFile {
    name: Option<RuntimeName>,
    /// How a SIF or SquashFS becomes a root file system: `auto`, `kernel`, `fuse` or `extract`.
    image_access: Option<ImageAccess>,
    /// Whether what a program reads when it starts is learnt, and read ahead the next time.
    read_ahead: Option<bool>,
}

impl<'de> Deserialize<'de> for RuntimeFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RuntimeFile, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Parts {
            name: Option<RuntimeName>,
            image_access: Option<ImageAccess>,
            read_ahead: Option<bool>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RuntimeFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`dvrun`, `apptainer`, or a mapping of `name`, `image_access` and `read_ahead`")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<RuntimeFile, E> {
                let name = RuntimeName::deserialize(name.into_deserializer())?;
                Ok(RuntimeFile {
                    name: Some(name),
                    ..RuntimeFile::default()
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RuntimeFile, A::Error> {
                let Parts {
                    name,
                    image_access,
                    read_ahead,
                } = Parts::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RuntimeFile {
                    name,
                    image_access,
                    read_ahead,
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// One site's ways. What it says of folders and images goes before what the file says for all.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    cache: Option<PathBuf>,
    scratch: Option<PathBuf>,
    spool: Option<PathBuf>,
    runtime: RuntimeFile,
    /// Where images and data are prepared.
    pub prepare: Where,
    /// What the job that prepares them asks for.
    pub prepare_job: PrepareJob,
    pub slurm: SlurmProfile,
}

/// What runs containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeName {
    #[default]
    Dvrun,
    /// `apptainer` along PATH of the host that runs the task.
    Apptainer,
}

/// All that the environment and the configuration decide.
#[derive(Clone, Debug)]
pub struct Settings {
    pub store: Store,
    pub scratch: PathBuf,
    pub image_access: ImageAccess,
    /// Where lists of what programs read when they start are kept; `None`: nowhere.
    pub read_ahead: Option<PathBuf>,
    /// Of tasks.
    pub runtime: RuntimeName,
    pub tag_ttl: Seconds,
    pub net: net::Options,
    pub profile: Profile,
    /// This binary and the configuration that it was told to use, as other hosts are told.
    pub program: Program,
    pub user: String,
    pub host: String,
    /// `None`: neither the environment nor the user database knows one.
    pub home: Option<PathBuf>,
}

impl Settings {
    /// Where it is kept what `program` reads when it starts.
    pub fn read_ahead(&self, program: String) -> Option<ReadAhead> {
        let folder = self.read_ahead.clone()?;
        Some(ReadAhead { folder, program })
    }

    /// # Errors
    /// A configuration file that cannot be read or is wrong, with its position; a profile that there is not.
    pub fn load(global: &Global) -> Result<Settings, Failure> {
        let home = home();
        let file = match &global.config {
            Some(path) => read(path, home.as_deref())?
                .ok_or_else(|| Failure::message(exit::USAGE, format!("there is no configuration file {}", path.display())))?,
            None => {
                let user = folder("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
                let system = read(Path::new("/etc/dvrun/config.yaml"), home.as_deref())?.unwrap_or_default();
                match user
                    .map(|user| read(&user.join("dvrun/config.yaml"), home.as_deref()))
                    .transpose()?
                    .flatten()
                {
                    Some(user) => user.over(system),
                    None => system,
                }
            }
        };
        let profile = match global.profile.as_ref().or(file.profile.as_ref()) {
            Some(name) => file.profiles.get(name).cloned().ok_or_else(|| {
                let names: Vec<_> = file.profiles.keys().map(String::as_str).collect();
                Failure::message(exit::USAGE, format!("the configuration has no profile `{name}`")).hint(match names.as_slice() {
                    [] => "it has none: add `profiles:`".to_owned(),
                    names => format!("the profiles are: {}", names.join(", ")),
                })
            })?,
            None => Profile::default(),
        };
        let mut profile = profile;
        let cache = cache(profile.cache.clone().or(file.cache), home.as_deref())?;
        let scratch = profile.scratch.clone().or(file.scratch).or_else(|| folder("TMPDIR"));
        let spool = profile.spool.clone().or(file.spool);
        let runtime = profile.runtime.name.or(file.runtime.name).unwrap_or_default();
        profile.slurm.apptainer = runtime == RuntimeName::Apptainer;
        let image_access = profile.runtime.image_access.or(file.runtime.image_access);
        let store = Store::new(&cache).with_spool(spool);
        let reads_ahead = profile.runtime.read_ahead.or(file.runtime.read_ahead).unwrap_or(true);
        let tag_ttl = file.tag_ttl.as_deref().unwrap_or("1h");
        let tag_ttl = tag_ttl
            .parse()
            .map_err(|error| Failure::message(exit::USAGE, format!("`tag_ttl` in the configuration: {error}")))?;
        let mut net = file.network.unwrap_or_default();
        net.mirrors = file.mirrors;
        net.registries = file.registries;
        proxies(&mut net.proxy);
        if net.certificate_folders.is_empty() {
            let own = folder("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
            net.certificate_folders = certificate_folders(own);
        }
        let exe = env::current_exe().map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
        let user = nix::unistd::Uid::current();
        Ok(Settings {
            read_ahead: reads_ahead.then(|| store.read_ahead()),
            store,
            scratch: scratch.unwrap_or_else(|| "/tmp".into()),
            image_access: image_access.unwrap_or_default(),
            runtime,
            tag_ttl,
            net,
            profile,
            program: Program {
                path: exe,
                options: chosen(global)?,
            },
            user: env::var("USER").unwrap_or_else(|_| user.to_string()),
            host: host(),
            home,
        })
    }
}

/// This very program, also when the file has been replaced meanwhile.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// The options that choose a configuration, for whoever calls this program from elsewhere.
fn chosen(global: &Global) -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    if let Some(config) = &global.config {
        let config = std::path::absolute(config).map_err(|error| Failure::new(exit::USAGE, &error, None))?;
        let text = config
            .to_str()
            .ok_or_else(|| Failure::message(exit::USAGE, format!("the path {} is not UTF-8", config.display())))?;
        words.extend(["--config".to_owned(), text.to_owned()]);
    }
    if let Some(profile) = &global.profile {
        words.extend(["--profile".to_owned(), profile.clone()]);
    }
    Ok(words)
}

impl Settings {
    /// Slurm's commands, in this process's environment.
    pub fn slurm(&self) -> Slurm {
        Slurm::new(env::vars_os())
    }
}

impl File {
    /// This file's keys before those of `base`.
    fn over(self, base: File) -> File {
        fn joined<V>(mut base: IndexMap<String, V>, over: IndexMap<String, V>) -> IndexMap<String, V> {
            base.extend(over);
            base
        }
        File {
            cache: self.cache.or(base.cache),
            scratch: self.scratch.or(base.scratch),
            spool: self.spool.or(base.spool),
            runtime: RuntimeFile {
                name: self.runtime.name.or(base.runtime.name),
                image_access: self.runtime.image_access.or(base.runtime.image_access),
                read_ahead: self.runtime.read_ahead.or(base.runtime.read_ahead),
            },
            tag_ttl: self.tag_ttl.or(base.tag_ttl),
            mirrors: joined(base.mirrors, self.mirrors),
            registries: joined(base.registries, self.registries),
            network: self.network.or(base.network),
            profile: self.profile.or(base.profile),
            profiles: joined(base.profiles, self.profiles),
        }
    }
}

/// The file at `path`, its relative paths made absolute; `None` where there is none.
fn read(path: &Path, home: Option<&Path>) -> Result<Option<File>, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::message(exit::USAGE, format!("cannot read {}: {error}", path.display()))),
    };
    if text.trim().is_empty() {
        return Ok(Some(File::default()));
    }
    let mut file: File =
        serde_yaml::from_str(&text).map_err(|error| Failure::message(exit::USAGE, format!("{}: {error}", path.display())))?;
    let path = std::path::absolute(path).map_err(|error| Failure::new(exit::USAGE, &error, None))?;
    let mut paths: Vec<&mut PathBuf> = [&mut file.cache, &mut file.scratch, &mut file.spool]
        .into_iter()
        .flatten()
        .collect();
    for profile in file.profiles.values_mut() {
        paths.extend([&mut profile.cache, &mut profile.scratch, &mut profile.spool].into_iter().flatten());
    }
    if let Some(net) = &mut file.network {
        paths.extend(&mut net.ca_certificates);
        paths.extend(&mut net.client_certificate);
        paths.extend(&mut net.certificate_folders);
    }
    for registry in file.registries.values_mut() {
        paths.extend(&mut registry.ca_certificates);
        paths.extend(&mut registry.client_certificate);
        paths.extend(&mut registry.client_key);
    }
    for folder in paths {
        *folder = match (folder.strip_prefix("~"), home) {
            (Ok(rest), Some(home)) => home.join(rest),
            (Ok(_), None) => {
                return Err(Failure::message(
                    exit::USAGE,
                    format!("{}: `~` means nothing, HOME is not set", path.display()),
                ));
            }
            // As paths in a workflow file: relative to the file that says so.
            (Err(_), _) => path.parent().unwrap_or(Path::new("/")).join(&*folder),
        };
    }
    Ok(Some(file))
}

/// Where Podman and Docker look for the certificates of a host, in this order.
fn certificate_folders(own: Option<PathBuf>) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    folders.extend(own.iter().map(|own| own.join("containers/certs.d")));
    folders.push("/etc/containers/certs.d".into());
    // Docker without root.
    folders.extend(own.iter().map(|own| own.join("docker/certs.d")));
    folders.push("/etc/docker/certs.d".into());
    folders
}

/// What the usual variables say, where the configuration is silent.
fn proxies(proxy: &mut net::Proxy) {
    let variable = |names: [&str; 2]| {
        names
            .into_iter()
            .find_map(|name| env::var(name).ok())
            .filter(|value| !value.is_empty())
    };
    proxy.http = proxy.http.take().or_else(|| variable(["http_proxy", "HTTP_PROXY"]));
    proxy.https = proxy.https.take().or_else(|| variable(["https_proxy", "HTTPS_PROXY"]));
    proxy.none_for = proxy.none_for.take().or_else(|| variable(["no_proxy", "NO_PROXY"]));
}

/// An absolute path from the environment; a relative one counts as unset (XDG base directory specification).
fn folder(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// HOME, or what the user database says where it is not set.
fn home() -> Option<PathBuf> {
    folder("HOME").or_else(|| {
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten()?;
        Some(user.dir).filter(|dir| dir.is_absolute())
    })
}

fn cache(configured: Option<PathBuf>, home: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = env::var_os("DVRUN_CACHE").filter(|path| !path.is_empty()) {
        return std::path::absolute(path).map_err(|error| Failure::new(exit::USAGE, &error, None));
    }
    let usual = || {
        folder("XDG_CACHE_HOME")
            .or_else(|| Some(home?.join(".cache")))
            .map(|folder| folder.join("dvrun"))
    };
    configured
        .or_else(usual)
        .ok_or_else(|| Failure::message(exit::USAGE, "there is no place for the cache: HOME is not set").hint("set HOME, or DVRUN_CACHE"))
}

fn host() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
