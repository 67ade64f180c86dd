//! SIF files out of registries: `dvrun pull oras://…`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::images::{self, Network, with_session};
use super::settings::Settings;
use crate::oci::Reference;
use crate::registry;

/// Brings the file into the store, and from there to `output`, which does not exist.
pub fn pull(reference: &str, output: Option<&Path>, global: &Global, settings: &Settings) -> Outcome {
    let reference: Reference = reference.parse().map_err(|error| Failure::new(exit::USAGE, &error, None))?;
    let tags = images::tags(Network::Use, settings);
    let (stored, digest) = with_session(tags, global, settings, async |session| {
        Ok(registry::pull_sif(session, &reference).await?)
    })?;
    let path = match output {
        Some(output) => {
            copy(&stored, output)
                .map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot write {}: {error}", output.display())))?;
            output.to_owned()
        }
        None => stored,
    };
    if global.json {
        println!("{}", json!({"digest": digest, "path": path}));
    } else if !global.quiet {
        println!("{digest} {}", path.display());
    }
    Ok(exit::DONE)
}

/// Whole or not at all; executable, as SIF files are.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let to = std::path::absolute(to)?;
    let beside = tempfile::NamedTempFile::new_in(to.parent().unwrap_or(Path::new("/")))?;
    fs::copy(from, beside.path())?;
    fs::set_permissions(beside.path(), fs::Permissions::from_mode(0o755))?;
    fs::File::open(beside.path())?.sync_all()?;
    beside.persist_noclobber(&to).map_err(|error| error.error)?;
    Ok(())
}
