//! Executes the steps of [`super::mounts`] below a root that is not yet the root.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::symlinkat;

use super::attributes;
use super::error::RuntimeError;
use super::inside::{self, Found, Kind};
use super::kernel::Kernel;
use super::mounts::{Step, What};
use super::root::{self, STAGE, handle};

/// A step, and what of the host it needs, opened while the host can still be seen.
pub struct Work<'a> {
    pub step: &'a Step,
    pub source: Option<OwnedFd>,
    /// Of the mount point; `None` where there is none, or where it is the kernel's to have it.
    pub kind: Option<Kind>,
    pub flags: MsFlags,
}

/// Where steps are executed.
pub struct Place<'a> {
    /// The container's root.
    base: &'a OwnedFd,
    /// An empty file.
    empty: OwnedFd,
    kernel: Kernel,
    /// Folders that were made here, in which most of the later steps belong: nothing in them is the image's.
    fresh: Vec<(PathBuf, OwnedFd)>,
}

impl<'a> Place<'a> {
    pub fn new(base: &'a OwnedFd, kernel: Kernel) -> Result<Place<'a>, RuntimeError> {
        Ok(Place {
            base,
            empty: memory_file("empty", b"")?,
            kernel,
            fresh: Vec::new(),
        })
    }

    /// Executes one step, after those whose targets are outside of its own.
    pub fn execute(&mut self, item: &Work<'_>) -> Result<(), RuntimeError> {
        let target = item.step.target.as_path();
        let at_point = |errno: Errno| match &item.step.what {
            What::Folder => RuntimeError::WorkingDir {
                path: target.to_owned(),
                source: errno.into(),
            },
            _ => RuntimeError::MountPoint {
                target: target.to_owned(),
                source: errno.into(),
            },
        };
        let failed = |errno: Errno| RuntimeError::Mount {
            what: item.step.what.to_string(),
            target: target.to_owned(),
            source: errno.into(),
        };
        let (point, kind) = match (&item.step.what, item.kind) {
            (What::Link(text), _) => return self.link(text, target).map_err(at_point),
            (_, Some(kind)) => (self.point(target, kind).map_err(at_point)?, kind),
            (_, None) => match self.there(target).map_err(at_point)? {
                Some(there) => there,
                None => return Ok(()),
            },
        };
        let bound = |source: &OwnedFd| self.bound(source, &point, target, item.flags).map_err(failed);
        match &item.step.what {
            What::Folder | What::Link(_) => {}
            What::Proc => {
                self.proc(&point, target, item.flags).map_err(failed)?;
                self.fresh.push((target.to_owned(), self.find(target).map_err(failed)?.fd));
            }
            What::Terminals => {
                let options = Some("newinstance,ptmxmode=0666,mode=0620");
                mount(Some("devpts"), handle(&point).as_str(), Some("devpts"), item.flags, options).map_err(failed)?;
            }
            What::Memory { mode, .. } => {
                let folder = bound(&root::memory_folder(*mode).map_err(failed)?)?;
                self.fresh.push((target.to_owned(), folder));
            }
            What::ProcMasked if kind == Kind::Folder => {}
            What::ProcMasked => drop(bound(&self.empty)?),
            What::ProcReadOnly => drop(bound(&point)?),
            What::Device | What::Bind { .. } => drop(bound(item.source.as_ref().expect("opened with the step"))?),
            What::File(contents) => drop(bound(&memory_file(&target.to_string_lossy().replace('/', "-"), contents)?)?),
        }
        Ok(())
    }

    /// Where the path leads, among what is mounted by now.
    pub fn find(&self, path: &Path) -> nix::Result<Found> {
        inside::find(self.base.as_fd(), path)
    }

    /// The fresh folder in which `path` is a name, and the name.
    fn in_fresh<'p>(&self, path: &'p Path) -> Option<(&OwnedFd, &'p Path)> {
        let path = path.as_os_str().as_bytes();
        let (folder, name) = path.split_at(path.iter().rposition(|&byte| byte == b'/')?);
        let (_, fd) = self.fresh.iter().find(|(made, _)| made.as_os_str().as_bytes() == folder)?;
        let name = Path::new(OsStr::from_bytes(&name[1..]));
        name.file_name().map(|_| (fd, name))
    }

    /// What is at `path`, if anything is.
    fn there(&self, path: &Path) -> nix::Result<Option<(OwnedFd, Kind)>> {
        let Some((folder, name)) = self.in_fresh(path) else {
            let found = self.find(path)?;
            return Ok(found.sight.missing.is_empty().then_some((found.fd, found.sight.kind)));
        };
        match openat(folder, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => inside::kind(&fd).map(|kind| Some((fd, kind))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The mount point at `target`, made where it is missing.
    fn point(&self, target: &Path, kind: Kind) -> nix::Result<OwnedFd> {
        if let Some((folder, name)) = self.in_fresh(target) {
            match inside::make_in(folder, name.as_os_str(), kind) {
                Err(Errno::EEXIST) => {}
                made => return made,
            }
        }
        inside::make(self.find(target)?, kind)
    }

    /// A symbolic link, unless there is something at its place, or nothing around it.
    fn link(&self, text: &Path, target: &Path) -> nix::Result<()> {
        let made = match self.in_fresh(target) {
            Some((folder, name)) => symlinkat(text, folder, name),
            None => match self.find(target)? {
                found if found.sight.missing.len() == 1 => symlinkat(text, &found.fd, Path::new(&found.sight.missing[0])),
                _ => return Ok(()),
            },
        };
        match made {
            Err(Errno::EEXIST) => Ok(()),
            made => made,
        }
    }

    /// Puts what is at `source` on `point`, which is at `target`. Gives the root of what is there now.
    fn bound(&self, source: &OwnedFd, point: &OwnedFd, target: &Path, flags: MsFlags) -> nix::Result<OwnedFd> {
        attributes::put(source, point, flags, self.kernel, || Ok(self.find(target)?.fd))
    }

    /// A `/proc` of the new PID namespace. Where parts of the host's own `/proc` are covered (this host is a container
    /// itself), the kernel refuses a fresh one: then the host's is shown, read-only with its covers. That shows the names of
    /// other processes, as the host itself does, and gives no hold on them: they are in another user namespace.
    fn proc(&self, point: &OwnedFd, target: &Path, flags: MsFlags) -> nix::Result<()> {
        match mount(Some("proc"), handle(point).as_str(), Some("proc"), flags, None::<&str>) {
            Err(Errno::EPERM) => {
                let host = open("/proc", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
                self.bound(&host, point, target, flags).map(drop)
            }
            done => done,
        }
    }
}

/// A file on the stage.
fn memory_file(name: &str, contents: &[u8]) -> Result<OwnedFd, RuntimeError> {
    let path = Path::new(STAGE).join(format!("file-{name}"));
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = open(&path, flags, Mode::from_bits_truncate(0o644)).map_err(RuntimeError::setup("making a file of the stage"))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(contents).map_err(|error| RuntimeError::Setup {
        what: format!("writing {name}"),
        source: (&error).into(),
    })?;
    Ok(file.into())
}
