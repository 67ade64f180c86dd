//! All that is found, and what is missing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::{amd, cdi, choice, ldcache, nvidia};
use crate::runtime::{Container, Mount};

/// Where the driver's files are seen: where NVIDIA's own images look for them.
pub const LIBRARIES: &str = "/usr/local/nvidia/lib64";
pub const BINARIES: &str = "/usr/local/nvidia/bin";

/// What a container gets so that programs in it can use GPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpus {
    pub binds: Vec<Mount>,
    pub env: Vec<(String, String)>,
    /// Whether the loader is to be told of [`LIBRARIES`].
    pub(super) libraries: bool,
    /// What was seen and left, a sentence each.
    pub notes: Vec<String>,
}

/// Why there are no GPUs to give.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("this host has no GPU: neither /dev/nvidia0 nor /dev/kfd, and no CDI specification")]
    NoDevice,
    #[error("there is no {}", .0.display())]
    NoDeviceFile(PathBuf),
    #[error("{} may not be used by this user", path.display())]
    NotPermitted { path: PathBuf, source: nix::Error },
    #[error("{name} leaves no GPU: it is `{value}`")]
    NoneChosen { name: String, value: String },
    #[error("{0} is not in /etc/ld.so.cache")]
    NoLibrary(&'static str),
    #[error("{} is no cache of libraries", .0.display())]
    Cache(PathBuf),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Specification { path: PathBuf, message: String },
}

impl GpuError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            GpuError::NoDevice => {
                "ask for a host that has one (`resources: {gpus: 1}`), or see whether the driver's module is loaded".to_owned()
            }
            GpuError::NoDeviceFile(_) => "the administrator loads the module with `nvidia-modprobe -u -c=0`".to_owned(),
            GpuError::NotPermitted { .. } => {
                "a job gets the GPUs that it asks for; elsewhere, ask to be of the group `render` or `video`".to_owned()
            }
            GpuError::NoneChosen { name, .. } => format!("ask for a GPU, or unset {name}"),
            GpuError::NoLibrary(_) => "the driver's libraries are not installed on this host, or `ldconfig` did not run since".to_owned(),
            GpuError::Cache(_) => "the administrator runs `ldconfig`".to_owned(),
            GpuError::Specification { .. } => "the administrator writes it anew: `nvidia-ctk cdi generate`".to_owned(),
            GpuError::Read { .. } => return None,
        })
    }
}

/// The GPUs of the host whose root is `root`, with the variables `chosen` that say which of them are meant.
///
/// # Errors
/// What is missing, the first thing of it.
pub fn find(root: &Path, chosen: Vec<(String, String)>) -> Result<Gpus, GpuError> {
    if let Some((name, value)) = choice::none(&chosen) {
        return Err(GpuError::NoneChosen {
            name: name.clone(),
            value: value.clone(),
        });
    }
    let mut gpus = Gpus::default();
    let specifications = cdi::specifications(root)?;
    let nvidia = entries(&root.join("dev"))?.iter().any(|name| nvidia::is_gpu(name));
    let amd = root.join("dev/kfd").exists();
    if !specifications.is_empty() {
        let cache = libraries(root)?.unwrap_or_default();
        cdi::add(root, &specifications, &cache, &mut gpus)?;
    } else if nvidia {
        let cache = libraries(root)?.ok_or(GpuError::NoLibrary("libcuda.so.1"))?;
        nvidia::add(root, &cache, &mut gpus)?;
    } else if !amd {
        return Err(GpuError::NoDevice);
    }
    if amd && specifications.is_empty() {
        amd::add(root, &mut gpus)?;
    }
    gpus.env.extend(chosen);
    Ok(gpus)
}

/// How many GPUs the host has: NVIDIA's devices, or AMD's render nodes. A host that does not show its devices has none.
pub fn count(root: &Path) -> u32 {
    let of = |folder: &str, is_one: &dyn Fn(&str) -> bool| {
        let names = entries(&root.join(folder)).unwrap_or_default();
        names.iter().filter(|name| is_one(name)).count() as u32
    };
    match of("dev", &nvidia::is_gpu) {
        0 if root.join("dev/kfd").exists() => of("dev/dri", &|name| name.starts_with("renderD")),
        nvidia => nvidia,
    }
}

impl Gpus {
    pub(super) fn bind(&mut self, source: PathBuf, target: &Path) {
        self.binds.push(Mount {
            source,
            target: target.to_owned(),
            read_only: true,
        });
    }

    /// Has `container` see them. What it declares at the same places, and the host's choice of GPUs, go before.
    pub fn add_to(self, container: &mut Container) {
        container.binds.extend(self.binds);
        let env = &mut container.env;
        if self.libraries {
            before(env, "LD_LIBRARY_PATH", LIBRARIES);
            before(env, "PATH", BINARIES);
        }
        for (name, value) in self.env {
            env.retain(|(other, _)| *other != name);
            env.push((name, value));
        }
    }
}

fn before(env: &mut Vec<(String, String)>, name: &str, folder: &str) {
    match env.iter_mut().find(|(other, value)| other == name && !value.is_empty()) {
        Some((_, value)) => *value = format!("{folder}:{value}"),
        None => env.push((name.to_owned(), folder.to_owned())),
    }
}

/// Where a path of the host's lies below `root`.
pub fn host(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Binds a device at its own path.
pub fn device(root: &Path, path: &Path, gpus: &mut Gpus) -> Result<(), GpuError> {
    let source = host(root, path);
    match access(&source, AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => {}
        Err(nix::Error::ENOENT) => return Err(GpuError::NoDeviceFile(path.to_owned())),
        Err(source) => {
            let path = path.to_owned();
            return Err(GpuError::NotPermitted { path, source });
        }
    }
    gpus.binds.push(Mount {
        source,
        target: path.to_owned(),
        read_only: false,
    });
    Ok(())
}

/// The names in a folder, sorted; none where there is no such folder.
pub fn entries(folder: &Path) -> Result<Vec<String>, GpuError> {
    let failed = |source| GpuError::Read {
        path: folder.to_owned(),
        source,
    };
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in listed {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// The loader's cache; `None` where there is none.
fn libraries(root: &Path) -> Result<Option<Vec<ldcache::Library>>, GpuError> {
    let path = root.join("etc/ld.so.cache");
    match read(&path, ldcache::LIMIT)? {
        Some(bytes) => ldcache::parse(&bytes).map(Some).ok_or(GpuError::Cache(path)),
        None => Ok(None),
    }
}

/// A file of at most `limit` bytes; `None` where there is none.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, GpuError> {
    let failed = |source| GpuError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > limit {
        true => Err(failed(io::ErrorKind::FileTooLarge.into())),
        false => Ok(Some(bytes)),
    }
}
