//! Executes the steps of [`super::mounts`], in a process that is already in namespaces of its own.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, umask};
use nix::unistd::{Gid, Uid, getgid, getuid};

use super::ahead::Ahead;
use super::attributes;
use super::container::{Container, Root, User};
use super::error::RuntimeError;
use super::execute::{Place, Work};
use super::forbidden;
use super::fuse::Owner;
use super::identity::{self, Caller};
use super::inside::{self, Kind, Sight, Sights};
use super::kernel::Kernel;
use super::layer::Layer;
use super::look::{LookError, Tree};
use super::mounts::{self, Access, Exec, Identity, Step, What};
use super::root::{self, Need};
use super::serve::View;
use super::sys::Depth;

/// No passwd file of an image is larger; more of it is not read.
const ETC_LIMIT: u64 = 4 << 20;

/// Who the caller is, outside and inside.
#[derive(Clone, Copy)]
pub struct Ids {
    pub uid: Uid,
    pub gid: Gid,
    pub inside: Owner,
}

impl Ids {
    /// Of this process, in `container`.
    pub fn of(container: &Container) -> Result<Ids, RuntimeError> {
        let (uid, gid) = (getuid(), getgid());
        let inside = match &container.user {
            User::Caller => Owner {
                uid: uid.as_raw(),
                gid: gid.as_raw(),
            },
            User::Root => Owner { uid: 0, gid: 0 },
            User::Image(name) => named(name, &container.root)?,
        };
        Ok(Ids { uid, gid, inside })
    }
}

fn named(user: &str, root: &Root) -> Result<Owner, RuntimeError> {
    let unusable = |reason: String| RuntimeError::User {
        user: user.to_owned(),
        reason,
    };
    let text = |tree: &Tree, path: &str| tree.text(Path::new(path), ETC_LIMIT as usize).map(Option::unwrap_or_default);
    let read = || -> Result<(Vec<u8>, Vec<u8>), LookError> {
        let tree = Tree::open(root)?;
        Ok((text(&tree, "/etc/passwd")?, text(&tree, "/etc/group")?))
    };
    let (passwd, group) = read().map_err(|error| unusable(format!("the image cannot be read: {error}")))?;
    let (uid, gid) = identity::numbers(user, &passwd, &group).map_err(|what| unusable(format!("the image does not know {what}")))?;
    Ok(Owner { uid, gid })
}

/// Makes the caller known in the new user namespace, under the one number that stands for it there.
pub fn map_ids(ids: Ids) -> Result<(), RuntimeError> {
    let Owner { uid, gid } = ids.inside;
    // Without setgroups denied first, an ordinary user may not map a group (user_namespaces(7)).
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{gid} {} 1", ids.gid)),
        ("uid_map", format!("{uid} {} 1", ids.uid)),
    ] {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            refused(errno, &format!("writing {file}"))
        })?;
    }
    Ok(())
}

/// What a refusal of the first privileged steps means.
pub fn refused(errno: Errno, what: &str) -> RuntimeError {
    match errno {
        Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::ENOSPC | Errno::EUSERS | Errno::ENOSYS => RuntimeError::NoUserNamespaces {
            forbidden: forbidden::explain(errno, |file| fs::read_to_string(Path::new("/proc/sys").join(file)).ok()),
            source: errno.into(),
        },
        errno => RuntimeError::setup(what)(errno),
    }
}

/// From the host's root to the container's. Afterwards nothing of the host is left but what was bound. Gives an `O_PATH` of the
/// image's root.
pub fn enter(container: &Container, ids: Ids, view: &View, kernel: Kernel) -> Result<OwnedFd, RuntimeError> {
    let before = umask(Mode::empty());
    // Nothing of this reaches the host, but what the host mounts later (an automounter's folders) comes in.
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(|errno| refused(errno, "taking the mounts over"))?;

    let image = view.open()?;
    let ahead = view.is_served().then(|| Ahead::program(image.as_fd(), container));
    let sights = Sights::of(image.as_fd());
    let resolve = |path: &Path| sights.at(path).map_or_else(|_| path.to_owned(), |sight| sight.path());
    let steps = mounts::steps(container, identity(&image, &sights, container, ids)?, resolve)?;
    let work = steps.iter().map(open_source).collect::<Result<Vec<_>, _>>()?;

    let layer = Layer::open(&container.writable)?;
    root::stage()?;
    let needs: Vec<Need<'_>> = work
        .iter()
        .zip(covered(&steps))
        .filter(|(_, covered)| !covered)
        .filter_map(|(item, _)| {
            item.kind.map(|kind| Need {
                target: &item.step.target,
                kind,
            })
        })
        .collect();
    let base = root::prepare(&image, view.is_served(), &sights, &layer, &needs, kernel)?;
    view.close().map_err(RuntimeError::setup("hiding the image"))?;
    let mut place = Place::new(&base, kernel)?;
    for item in &work {
        place.execute(item)?;
    }
    // Filled: from now on nothing can be left in it. A folder of the host that was bound there stays as it is.
    if steps
        .iter()
        .any(|step| step.target == Path::new("/dev") && matches!(step.what, What::Memory { .. }))
    {
        let dev = place.find(Path::new("/dev")).map_err(RuntimeError::setup("opening /dev"))?;
        attributes::add(&dev.fd, MsFlags::MS_RDONLY, Depth::One, kernel).map_err(RuntimeError::setup("making /dev read-only"))?;
    }
    drop(base);
    if let Some(ahead) = ahead {
        ahead.loader(image.as_fd());
    }
    root::pivot(kernel)?;
    umask(before);
    Ok(image)
}

/// Of each step, whether an outer mount before it hides what the image has at its target.
fn covered(steps: &[Step]) -> impl Iterator<Item = bool> {
    let mut outer: Vec<&Path> = Vec::new();
    steps.iter().map(move |step| {
        // What is below a target follows it.
        while outer.last().is_some_and(|outer| !step.target.starts_with(outer)) {
            outer.pop();
        }
        let covered = !outer.is_empty();
        if !matches!(step.what, What::Folder | What::Link(_)) {
            outer.push(&step.target);
        }
        covered
    })
}

fn open_source(step: &Step) -> Result<Work<'_>, RuntimeError> {
    let confined = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let item = |kind, flags| Work {
        step,
        source: None,
        kind,
        flags,
    };
    Ok(match &step.what {
        What::Proc => item(Some(Kind::Folder), confined | MsFlags::MS_NOEXEC),
        What::ProcReadOnly | What::ProcMasked => item(None, MsFlags::MS_RDONLY | confined | MsFlags::MS_NOEXEC),
        What::Terminals => item(Some(Kind::Folder), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC),
        What::Memory { exec: Exec::Allowed, .. } => item(Some(Kind::Folder), confined),
        What::Memory { exec: Exec::Refused, .. } => item(Some(Kind::Folder), confined | MsFlags::MS_NOEXEC),
        What::Link(_) => item(None, MsFlags::empty()),
        What::Folder => item(Some(Kind::Folder), MsFlags::empty()),
        What::File(_) => item(Some(Kind::File), confined | MsFlags::MS_RDONLY),
        What::Device => Work {
            source: Some(open_host(&step.target, &step.target, &step.target)?),
            ..item(Some(Kind::File), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)
        },
        What::Bind { source: path, access } => {
            let fd = source(path, &step.target)?;
            let file_type = inside::file_type(&fd).map_err(RuntimeError::setup("reading a bind's source"))?;
            let mut flags = match file_type {
                // A device that is bound by name is meant to work.
                SFlag::S_IFCHR | SFlag::S_IFBLK => MsFlags::MS_NOSUID,
                _ => confined,
            };
            if *access == Access::Read {
                flags |= MsFlags::MS_RDONLY;
            }
            Work {
                source: Some(fd),
                ..item(Some(Kind::of(file_type)), flags)
            }
        }
    })
}

/// Opens what is to be bound; links of the host are followed, as the caller could.
fn source(path: &Path, target: &Path) -> Result<OwnedFd, RuntimeError> {
    // With the dot an automounter mounts what belongs there; files have none.
    match open_host(&path.join("."), path, target) {
        Err(RuntimeError::BindSource { source, .. }) if source == Errno::ENOTDIR.into() => open_host(path, path, target),
        opened => opened,
    }
}

fn open_host(exactly: &Path, path: &Path, target: &Path) -> Result<OwnedFd, RuntimeError> {
    open(exactly, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOENT => RuntimeError::BindSourceMissing {
            path: path.to_owned(),
            target: target.to_owned(),
        },
        errno => RuntimeError::BindSource {
            path: path.to_owned(),
            target: target.to_owned(),
            source: errno.into(),
        },
    })
}

fn identity(image: &OwnedFd, sights: &Sights<'_>, container: &Container, ids: Ids) -> Result<Identity, RuntimeError> {
    let Owner { uid, gid } = ids.inside;
    let known = |file: &str| limited(root::regular(image, Path::new(file)));
    // The one whom the image names is one of the image's; all others are known to the host.
    let users = match container.user {
        User::Image(_) => known("/etc/passwd"),
        User::Caller | User::Root => limited(fs::File::open("/etc/passwd").ok()),
    };
    let name = match uid {
        0 => "root".to_owned(),
        // A user of a directory service is not in the file: any name will do.
        uid => identity::name_of(&users, uid).unwrap_or_else(|| "user".to_owned()),
    };
    let caller = Caller {
        name: &name,
        uid,
        gid,
        home: &container.home,
    };
    let mut host_files: Vec<(PathBuf, PathBuf)> = ["/etc/hosts", "/etc/resolv.conf"]
        .map(PathBuf::from)
        .into_iter()
        .filter(|path| path.exists())
        .map(|path| (path.clone(), path))
        .collect();
    // An image whose local time is a link into its own zone files keeps it: a mount would change the zone file.
    let localtime = PathBuf::from("/etc/localtime");
    let own = |sight: &Sight| sight.missing.is_empty() && sight.existing == localtime && sight.kind == Kind::File;
    if localtime.exists() && sights.at(&localtime).is_ok_and(|sight| own(&sight)) {
        host_files.push((localtime.clone(), localtime));
    }
    Ok(Identity {
        root: ids.uid.is_root(),
        passwd: identity::passwd(&known("/etc/passwd"), &caller),
        group: identity::group(&known("/etc/group"), &caller),
        host_files,
    })
}

/// The text of a file; nothing where there is none or it cannot be read: it is as good as absent.
fn limited(file: Option<fs::File>) -> Vec<u8> {
    let size = file
        .as_ref()
        .and_then(|file| file.metadata().ok())
        .map_or(0, |meta| meta.len().min(ETC_LIMIT));
    // With room for one byte more it is read in one piece.
    let mut text = Vec::with_capacity(size as usize + 1);
    match file.map(|file| file.take(ETC_LIMIT).read_to_end(&mut text)) {
        Some(Ok(_)) => text,
        Some(Err(_)) | None => Vec::new(),
    }
}
