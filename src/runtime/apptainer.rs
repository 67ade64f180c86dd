//! Apptainer in the place of this runtime, for sites that demand it: the same [`Container`] as `apptainer exec`.
//!
//! The same are binds, environment, working directory, `/tmp`, HOME and exit status. What Apptainer adds is its own: some
//! variables (`APPTAINER_NAME`, `SINGULARITY_NAME`, `PS1`), and a writable layer of 64 MiB unless its administrator says
//! otherwise (`sessiondir max size`). Ranks of a node have the host's whole `/dev`, since Apptainer gives a contained program a `/dev/shm`
//! of its own and binds no other there.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::container::{Container, MissingCwd, Root, User, Writable};
use super::error::RuntimeError;
use super::host::Invocation;
use super::inside;
use super::look::Tree;
use super::mounts;

/// How Apptainer is called.
#[derive(Clone, Copy, Debug)]
pub struct Apptainer<'a> {
    pub program: &'a Path,
    /// An empty folder of the host, seen as HOME.
    pub home: &'a Path,
    /// A folder of the host that is laid over the image: what [`mount_points`] made.
    pub layer: Option<&'a Path>,
    /// Apptainer's own environment: who the caller is, where its tools are.
    pub environment: &'a [(String, String)],
    /// One of several processes that find each other by the host's process ids, IPC namespace and `/dev/shm` (MPI).
    pub rank: bool,
}

/// What Apptainer mounts on and does not make, and the files to which it adds the caller only where they are.
const FOLDERS: [&str; 3] = ["/dev", "/proc", "/sys"];
const FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// Makes the places of binds within binds, and in `folder`, which is empty, what Apptainer needs and the image lacks: one made for
/// Docker need have no mount points.
///
/// Gives whether there is anything to be laid over the image.
///
/// # Errors
/// An image that cannot be looked into; a folder that cannot be written to.
pub fn mount_points(container: &Container, folder: &Path) -> Result<bool, RuntimeError> {
    places_in_binds(container)?;
    let (Root::Folder(path) | Root::Squashfs { file: path, .. }) = &container.root;
    let unreadable = |error: super::look::LookError| RuntimeError::Image {
        path: path.clone(),
        reason: error.to_string(),
        hint: None,
    };
    let tree = Tree::open(&container.root).map_err(unreadable)?;
    let bound = container.binds.iter().any(|bind| container.cwd.starts_with(&bind.target));
    let cwd = Some(container.cwd.as_path()).filter(|_| container.missing_cwd == MissingCwd::Make && !bound);
    let mut any = false;
    let folders = FOLDERS.map(Path::new).into_iter().chain(cwd).map(|point| (point, true));
    for (point, is_folder) in folders.chain(FILES.map(|point| (Path::new(point), false))) {
        if tree.kind(point).map_err(unreadable)?.is_some() {
            continue;
        }
        let place = folder.join(point.strip_prefix("/").unwrap_or(point));
        let above = if is_folder {
            place.as_path()
        } else {
            place.parent().unwrap_or(folder)
        };
        let made = fs::create_dir_all(above).and_then(|()| if is_folder { Ok(()) } else { fs::write(&place, "") });
        made.map_err(|error| RuntimeError::Setup {
            what: format!("making {}", place.display()),
            source: (&error).into(),
        })?;
        any = true;
    }
    Ok(any)
}

/// The command that runs `container`, and its environment; its standard streams are the caller's to set.
///
/// # Errors
/// [`RuntimeError::Invalid`] for what Apptainer cannot be told.
pub fn apptainer(how: &Apptainer<'_>, container: &Container) -> Result<Invocation, RuntimeError> {
    mounts::check(container)?;
    let mut words = vec![text(how.program)?.to_owned()];
    // Nothing of the host but what is asked for, and no word of an argument or a variable evaluated once more.
    words.extend(["--quiet", "exec", "--cleanenv", "--no-eval", "--no-umask"].map(str::to_owned));
    words.extend(match how.rank {
        false => ["--contain", "--pid", "--ipc"].map(str::to_owned).to_vec(),
        // As contained as it can be with the host's /dev/shm, by which ranks of a node speak to each other.
        true => ["--no-mount", "tmp,hostfs,cwd,bind-paths"].map(str::to_owned).to_vec(),
    });
    if container.writable == Writable::Tmpfs {
        words.push("--writable-tmpfs".to_owned());
    }
    if let Some(layer) = how.layer {
        let layer = field("a path", text(layer)?, &[',', ':'])?;
        words.extend(["--overlay".to_owned(), format!("{layer}:ro")]);
    }
    match &container.user {
        User::Caller => {}
        User::Root => words.push("--fakeroot".to_owned()),
        User::Image(user) => {
            return Err(RuntimeError::invalid(format!(
                "Apptainer cannot be told to be `{user}`, the image's user"
            )));
        }
    }
    if let Some(name) = &container.hostname {
        words.extend(["--uts".to_owned(), "--hostname".to_owned(), name.clone()]);
    }
    let home = field("a path", &format!("{}:{}", text(how.home)?, text(&container.home)?), &[','])?;
    words.extend(["--home".to_owned(), home, "--pwd".to_owned(), text(&container.cwd)?.to_owned()]);
    for (source, target, read_only) in binds(container) {
        let fields = [
            "type=bind".to_owned(),
            quoted(&format!("source={}", text(source)?))?,
            quoted(&format!("destination={}", text(target)?))?,
        ];
        let read_only = if read_only { ",ro" } else { "" };
        words.extend(["--mount".to_owned(), format!("{}{read_only}", fields.join(","))]);
    }
    let mut env = how.environment.to_vec();
    let own = container.env.iter().filter(|(name, _)| name != "HOME");
    env.extend(own.map(|(name, value)| (format!("APPTAINERENV_{name}"), value.clone())));
    let (Root::Folder(root) | Root::Squashfs { file: root, .. }) = &container.root;
    words.push(text(root)?.to_owned());
    words.extend(container.argv.iter().cloned());
    Ok(Invocation { argv: words, env })
}

/// Source, target, and whether it is read-only: an outer target before an inner one.
fn binds(container: &Container) -> Vec<(&Path, &Path, bool)> {
    let mut binds: Vec<(&Path, &Path, bool)> = Vec::new();
    let own = container
        .binds
        .iter()
        .map(|bind| (bind.source.as_path(), bind.target.as_path(), bind.read_only));
    let scratch = container
        .scratch
        .iter()
        .flat_map(|scratch| ["/tmp", "/var/tmp"].map(|path| (scratch.as_path(), Path::new(path), false)));
    for bind in own.chain(scratch) {
        // Of two at one place the first counts.
        if !binds.iter().any(|(_, target, _)| *target == bind.1) {
            binds.push(bind);
        }
    }
    binds.sort_by(|a, b| a.1.cmp(b.1));
    binds
}

/// Makes the places of binds within writable binds. Apptainer would make them too, and ends where another container that has the
/// same folder (a shard, a rank on this node) does so at the same time.
fn places_in_binds(container: &Container) -> Result<(), RuntimeError> {
    let binds = binds(container);
    for (at, (source, target, _)) in binds.iter().enumerate() {
        let around = binds[..at].iter().rev().find(|(_, outer, _)| target.starts_with(outer));
        let Some((folder, outer, false)) = around else { continue };
        let make = || -> nix::Result<()> {
            let folder = open(*folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            let kind = inside::kind(open(*source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)?;
            // A link in it may be a program's, and leads nowhere else.
            let found = inside::find(folder.as_fd(), target.strip_prefix(outer).unwrap_or(target))?;
            match found.sight.missing.is_empty() {
                true => Ok(()),
                false => inside::make(found, kind).map(drop),
            }
        };
        match make() {
            // Of what cannot be had Apptainer says more.
            Ok(()) | Err(Errno::EEXIST | Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => {
                return Err(RuntimeError::MountPoint {
                    target: target.to_path_buf(),
                    source: errno.into(),
                });
            }
        }
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str, RuntimeError> {
    path.to_str()
        .ok_or_else(|| RuntimeError::invalid(format!("{} is not UTF-8: Apptainer cannot be told of it", path.display())))
}

/// A field of comma-separated values (RFC 4180), as `--mount` has them.
fn quoted(text: &str) -> Result<String, RuntimeError> {
    let text = field("a bind", text, &['\n', '\r'])?;
    Ok(match text.contains([',', '"']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    })
}

fn field(what: &str, text: &str, without: &[char]) -> Result<String, RuntimeError> {
    match text.contains(without) {
        true => Err(RuntimeError::invalid(format!(
            "Apptainer cannot be told of {what} like {}",
            text.escape_debug()
        ))),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::container::{MissingCwd, Mount};
    use super::*;

    fn container() -> Container {
        let bind = |source: &str, target: &str, read_only| Mount {
            source: source.into(),
            target: target.into(),
            read_only,
        };
        Container {
            root: Root::Folder("/store/image/rootfs".into()),
            writable: Writable::Tmpfs,
            binds: vec![bind("/w/a,\"b", "/w/inner", true), bind("/w", "/w", false), bind("/x", "/w", true)],
            env: vec![("A".into(), "$(x) , =".into()), ("HOME".into(), "/home/user".into())],
            cwd: "/w".into(),
            argv: vec!["sh".into(), "-c".into(), "echo $A".into()],
            user: User::Caller,
            missing_cwd: MissingCwd::Make,
            scratch: Some("/scratch/1".into()),
            home: "/home/user".into(),
            hostname: None,
            read_ahead: None,
        }
    }

    fn words(container: &Container, rank: bool) -> Result<Vec<String>, RuntimeError> {
        let how = Apptainer {
            program: Path::new("apptainer"),
            home: Path::new("/scratch/2"),
            layer: Some(Path::new("/scratch/3")),
            environment: &[("PATH".to_owned(), "/bin".to_owned())],
            rank,
        };
        let Invocation { argv: words, env } = apptainer(&how, container)?;
        let env = env.into_iter().map(|(name, value)| format!("{name}={value}"));
        Ok(env.chain(words).collect())
    }

    #[test]
    fn everything_is_said() {
        let expected = "PATH=/bin|APPTAINERENV_A=$(x) , =|apptainer|--quiet|exec|--cleanenv|--no-eval|--no-umask|--contain|--pid|--ipc|--writable-tmpfs|\
            --overlay|/scratch/3:ro|--home|/scratch/2:/home/user|--pwd|/w|--mount|type=bind,source=/scratch/1,destination=/tmp|\
            --mount|type=bind,source=/scratch/1,destination=/var/tmp|--mount|type=bind,source=/w,destination=/w|\
            --mount|type=bind,\"source=/w/a,\"\"b\",destination=/w/inner,ro|/store/image/rootfs|sh|-c|echo $A";
        assert_eq!(words(&container(), false).unwrap().join("|"), expected);
        let rank = words(&container(), true).unwrap();
        assert!(!rank.iter().any(|word| ["--contain", "--ipc", "--pid"].contains(&word.as_str())));
    }

    #[test]
    fn many_make_the_places_of_binds_within_binds_at_once() {
        let host = tempfile::tempdir().unwrap();
        let path = |name: &str| host.path().join(name);
        for folder in ["root", "work", "data", "scratch", "outside", "read-only"] {
            fs::create_dir(path(folder)).unwrap();
        }
        fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink(path("outside"), path("work/link")).unwrap();
        let bind = |source: &str, target: &str, read_only| Mount {
            source: path(source),
            target: target.into(),
            read_only,
        };
        let mut container = container();
        (container.root, container.scratch) = (Root::Folder(path("root")), Some(path("scratch")));
        container.binds = vec![
            bind("data", "/work/a/b/data", true),
            bind("file", "/work/a/file", true),
            bind("data", "/work/link/data", true),
            bind("work", "/work", false),
            bind("data", "/tmp/deep/er", true),
            bind("read-only", "/ro", true),
            bind("data", "/ro/data", true),
        ];
        std::thread::scope(|scope| {
            for at in 0..8 {
                let (container, layer) = (&container, path(&format!("layer-{at}")));
                scope.spawn(move || {
                    fs::create_dir(&layer).unwrap();
                    assert!(mount_points(container, &layer).unwrap());
                    assert!(layer.join("dev").is_dir() && layer.join("etc/passwd").is_file() && layer.join("w").is_dir());
                });
            }
        });
        assert!(path("work/a/b/data").is_dir() && path("work/a/file").is_file() && path("scratch/deep/er").is_dir());
        for untouched in ["outside", "read-only", "data", "root"] {
            assert_eq!(fs::read_dir(path(untouched)).unwrap().count(), 0, "{untouched}");
        }
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let mut odd = container();
        odd.binds[0].source = "/w/a\nb".into();
        assert!(words(&odd, false).unwrap_err().to_string().contains("cannot be told of a bind"));
        let mut none = container();
        none.argv.clear();
        words(&none, false).unwrap_err();
    }
}
