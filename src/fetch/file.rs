//! One image: from where it is to a path of the user's, converted while it arrives; or copied, where it is a file already.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::find::suits;
use super::image::{PullError, arrive, forget_damaged};
use super::{FileError, Found, file_facts};
use crate::image::{
    App, ImageError, Layers, Limits, Origin, SquashfsOptions, apptainer_files, write_apptainer_sif, write_folder, write_squashfs,
};
use crate::net::Event;
use crate::oci::{ImageConfig, Source};
use crate::registry::{self, Session};
use crate::store::{Place, Scratch};

/// What a converted image is written as.
#[derive(Clone, Debug)]
pub enum Format {
    /// A root folder.
    Folder,
    /// The file system alone.
    Squashfs(SquashfsOptions),
    /// With Apptainer's files, and `apps` beside those that the image has.
    Sif { options: SquashfsOptions, apps: Vec<App> },
}

/// Converts an image to `out`, which must not exist. Layers are read as they arrive; the store keeps their blobs, not the result.
/// The same image and format give the same file: it is dated as the image is. A SIF is copied, or the SquashFS in it.
///
/// # Errors
/// What registry, layers and disk have to say. Then some of `out` may be there, for the caller to remove.
pub async fn image_to(session: &Session<'_>, found: &Found, limits: Limits, format: &Format, out: &Path) -> Result<(), PullError> {
    match image_to_once(session, found, limits.clone(), format, out).await {
        // Layers are read to their ends before anything of `out` is made.
        Err(error) if forget_damaged(session, found, &error).await? => image_to_once(session, found, limits, format, out).await,
        other => other,
    }
}

async fn image_to_once(session: &Session<'_>, found: &Found, limits: Limits, format: &Format, out: &Path) -> Result<(), PullError> {
    let name = found.name();
    let resolved = match found {
        Found::Layers(resolved) => resolved,
        Found::Sif { sif, platform } => {
            let in_registry = |source| PullError::Registry {
                image: name.clone(),
                source: Box::new(source),
            };
            let blob = registry::pull_sif(session, sif).await.map_err(in_registry)?;
            let facts = file_facts(&blob).map_err(|source| PullError::File {
                image: name.clone(),
                source,
            })?;
            suits(&name, &facts.config, platform).map_err(in_registry)?;
            return copy(name, blob, format, out).await;
        }
        Found::Local(local) if matches!(local.place, Place::File { .. }) => return copy(name, local.path.clone(), format, out).await,
        Found::Local(_) => return Err(PullError::Folder { image: name }),
    };
    let in_store = |source| PullError::Store {
        image: name.clone(),
        source,
    };
    let scratch = session.store.new_scratch().map_err(in_store)?;
    let spool = session.store.spool().unwrap_or(scratch.path());
    let (config, layers) = arrive(session, resolved, spool, limits).await?;
    let whole = registry::config_blob(session, resolved)
        .await
        .map_err(|source| PullError::Registry {
            image: name.clone(),
            source: Box::new(source),
        })?;
    (session.progress)(Event::Converting { what: &name });
    let work = Work {
        layers,
        scratch,
        origin: origin(&resolved.source, &config),
        config,
        // It was read as a configuration just now.
        whole: serde_json::from_slice(&whole).unwrap_or_default(),
        format: format.clone(),
        out: out.to_owned(),
    };
    match tokio::task::spawn_blocking(move || work.finish()).await {
        Ok(result) => result.map_err(|source| PullError::Image { image: name, source }),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Of an image that is one file what `format` asks for.
async fn copy(image: String, from: PathBuf, format: &Format, out: &Path) -> Result<(), PullError> {
    let (whole, out) = match format {
        Format::Sif { .. } => (true, out.to_owned()),
        Format::Squashfs(_) => (false, out.to_owned()),
        Format::Folder => return Err(PullError::Packed { image }),
    };
    let copied = tokio::task::spawn_blocking(move || copy_file(&from, whole, &out)).await;
    let copied = copied.expect("the thread neither panics nor is cancelled");
    copied.map_err(|source| PullError::File { image, source })
}

/// The whole file, or the SquashFS in it. Executable, as SIF files are.
fn copy_file(from: &Path, whole: bool, to: &Path) -> Result<(), FileError> {
    let facts = file_facts(from)?;
    let (offset, mode) = if whole { (0, 0o755) } else { (facts.offset, 0o644) };
    let copy = || -> io::Result<()> {
        let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
        from.seek(SeekFrom::Start(offset))?;
        io::copy(&mut from, &mut to)?;
        to.set_permissions(fs::Permissions::from_mode(mode))?;
        to.sync_all()
    };
    copy().map_err(|source| FileError::Copy {
        path: to.to_owned(),
        source,
    })
}

/// The part that is plain threads.
struct Work {
    layers: Layers,
    scratch: Scratch,
    config: ImageConfig,
    /// The configuration as it was sent.
    whole: Value,
    origin: Origin,
    format: Format,
    out: PathBuf,
}

impl Work {
    fn finish(self) -> Result<(), ImageError> {
        let mut merged = self.layers.finish()?;
        match &self.format {
            Format::Folder => {
                write_folder(&merged, &self.out, None)?;
            }
            Format::Squashfs(options) => {
                let write = || -> io::Result<()> {
                    let file = File::create_new(&self.out)?;
                    write_squashfs(&merged, &file, 0, options)?;
                    file.sync_all()
                };
                write().map_err(|source| ImageError::Io {
                    doing: "write",
                    path: self.out.clone(),
                    source,
                })?;
            }
            Format::Sif { options, apps } => {
                let files = apptainer_files(&merged, &self.config, &self.whole["config"], apps, &self.origin);
                write_apptainer_sif(&mut merged, &files, options, self.scratch.path(), &self.out)?;
            }
        }
        Ok(())
    }
}

fn origin(source: &Source, config: &ImageConfig) -> Origin {
    let text = source.to_string();
    let (bootstrap, from) = match text.split_once("://").or_else(|| text.split_once(':')) {
        Some((scheme, from)) => (scheme, from),
        None => ("docker", text.as_str()),
    };
    let created: Option<jiff::Timestamp> = config.created.as_ref().and_then(|created| created.parse().ok());
    Origin {
        bootstrap: bootstrap.to_owned(),
        from: from.to_owned(),
        created: created.map_or(0, jiff::Timestamp::as_second),
    }
}
