//! What a container sees, as an ordered list of steps. Pure: no kernel is asked.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::container::{Container, MissingCwd};
use super::error::RuntimeError;

/// Devices that every program may expect (Linux Standard Base and OCI runtime spec, "Default Devices").
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];
/// Parts of a fresh `/proc` that are about the host, and that the caller could write to: shown, but not to be written to.
const PROC_READ_ONLY: [&str; 1] = ["/proc/sys"];
/// As these, where the caller is the host's root, who alone could.
const PROC_READ_ONLY_FOR_ROOT: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"];
/// Parts of a fresh `/proc` that leak what is none of the program's business: an empty file stands there.
const PROC_MASKED: [&str; 3] = ["/proc/keys", "/proc/latency_stats", "/proc/sched_debug"];
/// As these, where the caller is the host's root, who alone could read them.
const PROC_MASKED_FOR_ROOT: [&str; 2] = ["/proc/kcore", "/proc/timer_list"];

/// One step: `what` comes to `target`.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Absolute, in the container, its symbolic links resolved as far as the image knows them.
    pub target: PathBuf,
    pub what: What,
}

/// What a step brings.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A procfs of the container's own PID namespace.
    Proc,
    /// A part of the `/proc` before it, read-only; left out when the kernel has none.
    ProcReadOnly,
    /// As [`What::ProcReadOnly`], and empty.
    ProcMasked,
    /// Pseudo-terminals of its own.
    Terminals,
    /// A device of the host, at the same path.
    Device,
    Link(PathBuf),
    /// An empty folder in memory.
    Memory {
        mode: u32,
        exec: Exec,
    },
    /// A file or folder of the host.
    Bind {
        source: PathBuf,
        access: Access,
    },
    /// A file with these contents, read-only.
    File(Vec<u8>),
    /// Only that the folder exists.
    Folder,
}

/// Whether programs may be executed from a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exec {
    Allowed,
    Refused,
}

/// Whether a bind may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

/// What must fit this host and this user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    /// The caller is the host's root, whatever it is inside.
    pub root: bool,
    /// Files of `/etc`.
    pub passwd: Vec<u8>,
    pub group: Vec<u8>,
    /// `(target, source on the host)`, both there.
    pub host_files: Vec<(PathBuf, PathBuf)>,
}

/// The steps in the order of execution: an outer target before an inner one.
///
/// `resolve` gives a target without the image's symbolic links; only then does the order mean anything. Where two steps
/// have one target, a bind of the container wins over what is there by default, and the first bind over later ones.
pub fn steps(container: &Container, identity: Identity, resolve: impl Fn(&Path) -> PathBuf) -> Result<Vec<Step>, RuntimeError> {
    let mut steps = Vec::new();
    for bind in &container.binds {
        for (path, side) in [(&bind.source, "source"), (&bind.target, "target")] {
            if !path.is_absolute() {
                return Err(RuntimeError::invalid(format!("the bind {side} {} is not absolute", path.display())));
            }
        }
        let access = if bind.read_only { Access::Read } else { Access::ReadWrite };
        steps.push(step(
            plain(&bind.target),
            What::Bind {
                source: bind.source.clone(),
                access,
            },
        ));
    }
    steps.extend(defaults(container, identity));
    let made = FRESH.map(|outer| (outer, resolve(Path::new(outer))));
    for step in &mut steps {
        let below = made
            .iter()
            .find_map(|(outer, resolved)| Some((outer, resolved, within(&step.target, outer)?)));
        match below {
            Some((outer, resolved, _)) if resolved.as_os_str() == *outer => {}
            Some((_, resolved, rest)) => step.target = resolved.join(rest),
            None => step.target = resolve(&step.target),
        }
        if step.target == Path::new("/") && step.what != What::Folder {
            return Err(RuntimeError::invalid("something is to be mounted on the root itself"));
        }
    }
    // Stable.
    steps.sort_by(|a, b| order(&a.target).cmp(order(&b.target)));
    let mut taken = PathBuf::new();
    steps.retain(|step| match step.what {
        What::Folder => true,
        _ if step.target.as_os_str() == taken.as_os_str() => false,
        _ => {
            taken.clone_from(&step.target);
            true
        }
    });
    Ok(steps)
}

/// By component: `/a` < `/a/b` < `/a.b`. Paths themselves compare so, too, and take them apart each time.
fn order(path: &Path) -> impl Iterator<Item = u8> {
    let bytes = path.as_os_str().as_bytes().iter();
    bytes.map(|&byte| if byte == b'/' { 0 } else { byte })
}

/// What is made anew here.
const FRESH: [&str; 2] = ["/dev", "/proc"];

/// The rest of a target below `outer`, which is made anew: links that an image has at such a place (`/dev/stdout`,
/// `/dev/shm`) are hidden, and lead nowhere.
fn within<'a>(target: &'a Path, outer: &str) -> Option<&'a Path> {
    let rest = target.as_os_str().as_bytes().strip_prefix(outer.as_bytes())?.strip_prefix(b"/")?;
    let rest = Path::new(OsStr::from_bytes(rest));
    rest.components().all(|part| matches!(part, Component::Normal(_))).then_some(rest)
}

fn defaults(container: &Container, identity: Identity) -> Vec<Step> {
    let mut steps = vec![
        step("/proc", What::Proc),
        step("/sys", read_only("/sys")),
        step("/dev", memory(0o755, Exec::Refused)),
        step("/dev/pts", What::Terminals),
        step("/dev/shm", memory(0o1777, Exec::Allowed)),
        step("/etc/passwd", What::File(identity.passwd)),
        step("/etc/group", What::File(identity.group)),
        step(plain(&container.home), memory(0o755, Exec::Allowed)),
    ];
    if container.missing_cwd == MissingCwd::Make {
        steps.push(step(plain(&container.cwd), What::Folder));
    }
    steps.extend(PROC_READ_ONLY.map(|path| step(path, What::ProcReadOnly)));
    steps.extend(PROC_MASKED.map(|path| step(path, What::ProcMasked)));
    if identity.root {
        steps.extend(PROC_READ_ONLY_FOR_ROOT.map(|path| step(path, What::ProcReadOnly)));
        steps.extend(PROC_MASKED_FOR_ROOT.map(|path| step(path, What::ProcMasked)));
    }
    steps.extend(DEVICES.map(|name| step(Path::new("/dev").join(name), What::Device)));
    steps.extend(DEVICE_LINKS.map(|(path, text)| step(path, What::Link(text.into()))));
    steps.extend(
        identity
            .host_files
            .into_iter()
            .map(|(target, source)| step(target, read_only(source))),
    );
    // Both are where programs put large things: both on the disk that the caller chose.
    for path in ["/tmp", "/var/tmp"] {
        steps.push(step(
            path,
            match &container.scratch {
                Some(source) => What::Bind {
                    source: source.clone(),
                    access: Access::ReadWrite,
                },
                None => memory(0o1777, Exec::Allowed),
            },
        ));
    }
    steps
}

/// Without `.` and doubled slashes: from here on targets are compared byte by byte.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

fn step(target: impl AsRef<Path>, what: What) -> Step {
    Step {
        target: target.as_ref().to_owned(),
        what,
    }
}

fn memory(mode: u32, exec: Exec) -> What {
    What::Memory { mode, exec }
}

fn read_only(source: impl Into<PathBuf>) -> What {
    What::Bind {
        source: source.into(),
        access: Access::Read,
    }
}

/// Refuses what no step could be made of. Everything else is found out on the way.
pub fn check(container: &Container) -> Result<(), RuntimeError> {
    let absolute = |what: &str, path: &Path| {
        if path.is_absolute() && !path.components().any(|c| c == Component::ParentDir) {
            return Ok(());
        }
        Err(RuntimeError::invalid(format!("{what} {} is not an absolute path", path.display())))
    };
    absolute("the working directory", &container.cwd)?;
    absolute("the home directory", &container.home)?;
    if container.home.to_string_lossy().contains([':', '\n']) {
        return Err(RuntimeError::invalid("a colon or a newline in the home directory"));
    }
    if container.argv.first().is_none_or(String::is_empty) {
        return Err(RuntimeError::invalid("no program is given"));
    }
    let nul = |text: &String| text.contains('\0');
    if container.argv.iter().any(nul) || container.env.iter().any(|(name, value)| nul(name) || nul(value)) {
        return Err(RuntimeError::invalid("a NUL character in an argument or a variable"));
    }
    if let Some((name, _)) = container.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        return Err(RuntimeError::invalid(format!("`{name}` cannot name an environment variable")));
    }
    Ok(())
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::Proc | What::ProcReadOnly | What::ProcMasked => f.write_str("proc"),
            What::Terminals => f.write_str("devpts"),
            What::Device => f.write_str("a device"),
            What::Link(text) => write!(f, "a link to {}", text.display()),
            What::Memory { .. } => f.write_str("a tmpfs"),
            What::Bind { source, .. } => write!(f, "{}", source.display()),
            What::File(_) => f.write_str("a file made for this user"),
            What::Folder => f.write_str("a folder"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::container::{Mount, Root, User, Writable};
    use super::*;

    fn container() -> Container {
        Container {
            root: Root::Folder("/image".into()),
            writable: Writable::No,
            binds: vec![],
            env: vec![],
            cwd: "/work".into(),
            argv: vec!["true".into()],
            missing_cwd: MissingCwd::Make,
            user: User::Caller,
            scratch: None,
            home: "/home/ada".into(),
            hostname: None,
            read_ahead: None,
        }
    }

    fn bind(source: &str, target: &str) -> Mount {
        Mount {
            source: source.into(),
            target: target.into(),
            read_only: true,
        }
    }

    fn targets(container: &Container, resolve: impl Fn(&Path) -> PathBuf) -> Vec<String> {
        let steps = steps(container, Identity::default(), resolve).unwrap();
        steps
            .iter()
            .map(|step| format!("{} {}", step.target.display(), step.what))
            .collect()
    }

    #[test]
    fn outer_before_inner_whatever_the_order_given() {
        let mut container = container();
        container.binds = vec![
            bind("/c", "/a/b/c"),
            bind("/t", "/tmp/x"),
            bind("/a", "/a"),
            bind("/dash", "/a-b"),
            bind("/b", "/a/b"),
        ];
        let all = targets(&container, Path::to_owned);
        let at = |step: &str| {
            all.iter()
                .position(|other| other == step)
                .unwrap_or_else(|| panic!("{step} in {all:#?}"))
        };
        for [outer, inner] in [
            ["/a /a", "/a/b /b"],
            ["/a/b /b", "/a/b/c /c"],
            ["/a/b/c /c", "/a-b /dash"],
            ["/tmp a tmpfs", "/tmp/x /t"],
            ["/dev a tmpfs", "/dev/null a device"],
            ["/dev a tmpfs", "/dev/pts devpts"],
            ["/proc proc", "/proc/sys proc"],
        ] {
            assert!(at(outer) < at(inner), "{outer}, {inner} in {all:#?}");
        }
        assert!(all.contains(&"/home/ada a tmpfs".to_owned()) && all.contains(&"/work a folder".to_owned()));
    }

    #[test]
    fn one_step_a_target_and_links_are_resolved_first() {
        let mut container = container();
        container.binds = vec![bind("/one", "/tmp"), bind("/two", "/tmp"), bind("/three", "/link/x")];
        let resolve = |path: &Path| match path.strip_prefix("/link") {
            Ok(rest) => Path::new("/var").join(rest),
            Err(_) if path == Path::new("/var/tmp") => "/tmp".into(),
            Err(_) => path.to_owned(),
        };
        let all = targets(&container, resolve);
        assert!(
            all.contains(&"/tmp /one".to_owned()) && all.contains(&"/var/x /three".to_owned()),
            "{all:#?}"
        );
        assert_eq!(all.iter().filter(|step| step.starts_with("/tmp ")).count(), 1, "{all:#?}");
        assert!(!all.iter().any(|step| step.starts_with("/var/tmp")));
    }

    #[test]
    fn links_that_an_image_has_in_dev_are_not_followed() {
        let resolve = |path: &Path| match path.to_str() {
            Some("/dev/stdout") => "/proc/self/fd/1".into(),
            Some("/dev/shm") => "/run/shm".into(),
            Some("/dev/../etc/gpu") => "/etc/gpu".into(),
            _ => path.to_owned(),
        };
        let mut container = container();
        container.binds = vec![bind("/gpu", "/dev/../etc/gpu")];
        let all = targets(&container, resolve);
        for step in ["/dev/stdout a link to /proc/self/fd/1", "/dev/shm a tmpfs", "/etc/gpu /gpu"] {
            assert!(all.contains(&step.to_owned()), "{step} in {all:#?}");
        }
    }

    #[test]
    fn more_of_proc_is_covered_where_more_of_it_could_be_opened() {
        let covered = |root: bool| -> Vec<String> {
            let identity = Identity {
                root,
                ..Identity::default()
            };
            let all = steps(&container(), identity, Path::to_owned).unwrap().into_iter();
            all.filter(|step| matches!(step.what, What::ProcReadOnly | What::ProcMasked))
                .map(|step| step.target.display().to_string())
                .collect()
        };
        assert_eq!(
            covered(false),
            ["/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/sys"]
        );
        assert!(covered(true).len() == 10 && covered(true).contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn scratch_takes_the_place_of_memory() {
        let mut container = container();
        container.scratch = Some("/local/job".into());
        let all = targets(&container, Path::to_owned);
        assert!(all.contains(&"/tmp /local/job".to_owned()) && all.contains(&"/var/tmp /local/job".to_owned()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |change: &dyn Fn(&mut Container)| {
            let mut container = container();
            change(&mut container);
            check(&container)
                .and_then(|()| steps(&container, Identity::default(), Path::to_owned).map(drop))
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&|c| c.argv.clear()).contains("no program"));
        assert!(refused(&|c| c.cwd = "work".into()).contains("the working directory work"));
        assert!(refused(&|c| c.home = "/a:b".into()).contains("colon"));
        assert!(refused(&|c| c.env = vec![("A=B".into(), String::new())]).contains("`A=B`"));
        assert!(refused(&|c| c.argv.push("\0".into())).contains("NUL"));
        assert!(refused(&|c| c.binds = vec![bind("/a", "/")]).contains("the root itself"));
        assert!(refused(&|c| c.binds = vec![bind("a", "/b")]).contains("source a"));
        assert!(check(&container()).is_ok());
    }
}
