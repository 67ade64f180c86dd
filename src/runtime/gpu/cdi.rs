//! Container Device Interface specifications (github.com/cncf-tags/container-device-interface, SPEC.md): what a site has
//! written down of its devices. Of these, the GPUs: kinds `VENDOR/gpu`.
//!
//! Devices, mounts and variables are taken. Hooks are programs of the host that change a container's files, mostly to tell
//! its loader of libraries: they are not run, and libraries are shown where the loader looks instead.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::find::{GpuError, Gpus, LIBRARIES, device, entries, host, read};
use super::ldcache::Library;
use super::nvidia;
use crate::runtime::Mount;

/// Of two specifications of a kind, the one in the later folder counts.
const FOLDERS: [&str; 2] = ["etc/cdi", "var/run/cdi"];
const LIMIT: u64 = 4 << 20;

/// The GPUs of one vendor.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Specification {
    kind: String,
    devices: Vec<Device>,
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<CdiMount>,
    hooks: Vec<Hook>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CdiMount {
    host_path: PathBuf,
    container_path: PathBuf,
    options: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Hook {
    path: String,
}

/// The specifications of GPUs, one a kind.
pub fn specifications(root: &Path) -> Result<Vec<Specification>, GpuError> {
    let mut kinds = BTreeMap::new();
    for folder in FOLDERS {
        for name in entries(&root.join(folder))? {
            let path = root.join(folder).join(&name);
            let json = name.ends_with(".json");
            if !json && !name.ends_with(".yaml") {
                continue;
            }
            let Some(bytes) = read(&path, LIMIT)? else { continue };
            let wrong = |message: String| GpuError::Specification {
                path: path.clone(),
                message,
            };
            let specification: Specification = match json {
                true => serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?,
                false => {
                    let text = std::str::from_utf8(&bytes).map_err(|error| wrong(error.to_string()))?;
                    serde_yaml::from_str(text).map_err(|error| wrong(error.to_string()))?
                }
            };
            if specification.kind.ends_with("/gpu") && !specification.devices.is_empty() {
                kinds.insert(specification.kind.clone(), specification);
            }
        }
    }
    Ok(kinds.into_values().collect())
}

/// What the specifications have a container see: all devices, of which a variable chooses.
pub fn add(root: &Path, specifications: &[Specification], cache: &[Library], gpus: &mut Gpus) -> Result<(), GpuError> {
    for specification in specifications {
        // `all` is the sum of the others where a generator wrote it.
        let all = specification.devices.iter().filter(|device| device.name == "all");
        let edits: Vec<&Edits> = match all.clone().next() {
            Some(_) => all.map(|device| &device.container_edits).collect(),
            None => specification.devices.iter().map(|device| &device.container_edits).collect(),
        };
        let mut hooks = Vec::new();
        for edits in edits.into_iter().chain([&specification.container_edits]) {
            edit(root, edits, cache, gpus)?;
            hooks.extend(edits.hooks.iter().map(|hook| hook.path.as_str()));
        }
        hooks.sort_unstable();
        hooks.dedup();
        if !hooks.is_empty() {
            gpus.notes.push(format!(
                "the hooks of the CDI specification of {} are not run: {}",
                specification.kind,
                hooks.join(", ")
            ));
        }
    }
    Ok(())
}

fn edit(root: &Path, edits: &Edits, cache: &[Library], gpus: &mut Gpus) -> Result<(), GpuError> {
    for variable in &edits.env {
        if let Some((name, value)) = variable.split_once('=') {
            gpus.env.push((name.to_owned(), value.to_owned()));
        }
    }
    for node in &edits.device_nodes {
        let source = node.host_path.as_ref().unwrap_or(&node.path);
        let bound = gpus.binds.iter().any(|bind| bind.target == node.path);
        if !bound {
            device(root, source, gpus)?;
            if let Some(bind) = gpus.binds.last_mut() {
                bind.target.clone_from(&node.path);
            }
        }
    }
    for mount in &edits.mounts {
        let source = host(root, &mount.host_path);
        if !source.exists() || gpus.binds.iter().any(|bind| bind.target == mount.container_path) {
            continue;
        }
        if mount
            .host_path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains(".so"))
        {
            library(root, &mount.host_path, cache, gpus);
        }
        gpus.binds.push(Mount {
            source,
            target: mount.container_path.clone(),
            read_only: !mount.options.iter().any(|option| option == "rw"),
        });
    }
    Ok(())
}

/// A library under the names that the host's loader knows it by, or else under its own.
fn library(root: &Path, path: &Path, cache: &[Library], gpus: &mut Gpus) {
    let Ok(file) = host(root, path).canonicalize() else { return };
    let is_it = |library: &&Library| host(root, &library.path).canonicalize().is_ok_and(|other| other == file);
    let mut names: Vec<Library> = cache.iter().filter(is_it).cloned().collect();
    if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
        names.push(Library {
            name: name.to_owned(),
            path: path.to_owned(),
        });
    }
    let taken = |library: &&Library| {
        !gpus
            .binds
            .iter()
            .any(|bind| bind.target == Path::new(LIBRARIES).join(&library.name))
    };
    let names: Vec<Library> = names.iter().filter(taken).cloned().collect();
    nvidia::libraries(root, names.iter(), gpus);
}
