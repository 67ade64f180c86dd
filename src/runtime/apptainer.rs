//! Apptainer in the place of this runtime, for sites that demand it: the same [`Container`] as `apptainer exec`.
//!
//! The same are binds, environment, working directory, `/tmp`, HOME and exit status. What Apptainer adds is its own: some
//! variables (`APPTAINER_NAME`, `SINGULARITY_NAME`, `PS1`), and a writable layer of 64 MiB unless its administrator says
//! otherwise (`sessiondir max size`). Ranks of a node have the host's whole `/dev`, since Apptainer gives a contained program a `/dev/shm`
//! of its own and binds no other there.

use std::fs;
use std::path::Path;

use super::container::{Container, MissingCwd, Root, User, Writable};
use super::error::RuntimeError;
use super::host::Invocation;
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

/// Makes in `folder`, which is empty, what Apptainer needs and the image lacks: one made for Docker need have no mount points.
/// Gives whether there is anything to be laid over the image.
///
/// # Errors
/// An image that cannot be looked into; a folder that cannot be written to.
pub fn mount_points(container: &Container, folder: &Path) -> Result<bool, RuntimeError> {
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
        // Of two at one place the first counts; an outer one goes before an inner one.
        if !binds.iter().any(|(_, target, _)| *target == bind.1) {
            binds.push(bind);
        }
    }
    binds.sort_by(|a, b| a.1.cmp(b.1));
    for (source, target, read_only) in binds {
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
    fn what_cannot_be_said_is_refused() {
        let mut odd = container();
        odd.binds[0].source = "/w/a\nb".into();
        assert!(words(&odd, false).unwrap_err().to_string().contains("cannot be told of a bind"));
        let mut none = container();
        none.argv.clear();
        words(&none, false).unwrap_err();
    }
}
