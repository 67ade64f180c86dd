//! One function a line of `dvrun doctor`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use indicatif::HumanBytes;

use super::Finding;
use crate::cli::credentials;
use crate::cli::settings::Settings;
use crate::engine::{group, slurm};
use crate::runtime::{self, ImageAccess, NoKernelMount, RuntimeError, Writable};

/// Less room than this is soon used up.
const LITTLE: u64 = 2 << 30;
/// File systems that other machines see, by the names in `/proc/self/mountinfo`.
const SHARED: [&str; 9] = ["nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "panfs", "afs"];

pub(super) fn all(settings: &Settings) -> Vec<Finding> {
    let mut findings = containers(settings);
    findings.push(image_access(settings));
    findings.push(filter());
    findings.push(cgroups());
    findings.push(scratch(&settings.scratch));
    findings.push(cache(settings.store.root()));
    findings.push(cluster());
    findings.push(apptainer());
    findings.push(registries(settings));
    findings
}

/// Containers and writable layers, by trying.
fn containers(settings: &Settings) -> Vec<Finding> {
    let empty = match tempfile::tempdir_in(&settings.scratch).or_else(|_| tempfile::tempdir()) {
        Ok(folder) => folder,
        Err(error) => {
            let what = format!("cannot make a folder to try one in: {error}");
            return vec![Finding::fail(
                "containers",
                what,
                Some("set TMPDIR to a folder that you may write to".to_owned()),
            )];
        }
    };
    let attempt = |writable| runtime::try_container(&settings.program.path, empty.path(), writable);
    let release = read("/proc/sys/kernel/osrelease");
    let mut findings = vec![match attempt(Writable::No) {
        Ok(()) => Finding::ok("containers", format!("user namespaces work (Linux {release})")),
        Err(error) => {
            let hint = error.hint();
            return vec![Finding::fail("containers", with_cause(&error), hint)];
        }
    }];
    findings.push(match attempt(Writable::Tmpfs) {
        Ok(()) => Finding::ok("writable layer", "overlay file systems work in user namespaces"),
        Err(error) => Finding::warn(
            "writable layer",
            with_cause(&error),
            "images are read-only here: let programs write to /tmp and binds (Linux 5.11 allows more)",
        ),
    });
    findings
}

fn with_cause(error: &RuntimeError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn image_access(settings: &Settings) -> Finding {
    let name = "image files";
    let (best, why) = runtime::best_image_access();
    let (access, why) = match settings.image_access {
        ImageAccess::Auto => (best, why),
        ImageAccess::Kernel => match runtime::may_mount_by_kernel() {
            Ok(()) => (ImageAccess::Kernel, "the configuration says so".to_owned()),
            Err(error) => {
                let what = format!("the configuration says that the kernel mounts a SIF, and it will not: {error}");
                return Finding::fail(name, what, Some(NoKernelMount::HINT.to_owned()));
            }
        },
        chosen => (chosen, "the configuration says so".to_owned()),
    };
    match access {
        ImageAccess::Extract => Finding::warn(
            name,
            format!("a SIF is unpacked before it runs (extract): {why}"),
            "ask for /dev/fuse with mode 0666; meanwhile scratch needs room for the images",
        ),
        access => Finding::ok(name, format!("a SIF runs as it is ({access}): {why}")),
    }
}

fn filter() -> Finding {
    match fs::exists("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(true) => Finding::ok("seccomp", "contained programs' system calls are filtered"),
        _ => Finding::warn(
            "seccomp",
            "this kernel filters no system calls",
            "containers run, with one layer of protection fewer (CONFIG_SECCOMP_FILTER)",
        ),
    }
}

fn cgroups() -> Finding {
    let name = "cgroups";
    let own = read("/proc/self/cgroup");
    // Where both versions are, a controller is in one of them.
    let version = match own.lines().any(|line| line.starts_with("0::")) && !own.contains(":memory:") {
        _ if own.is_empty() => "there are none",
        true => "version 2",
        false => "version 1",
    };
    if group::is_delegated() {
        return Finding::ok(name, format!("{version}, delegated to you: a task is held to its memory and cpus"));
    }
    let limits = "memory limits are those of the scheduler, or a process's own (rlimit)";
    let hint = match version {
        "version 2" => format!("{limits}; `systemd-run --user --scope -p Delegate=yes dvrun run …` has groups"),
        _ => limits.to_owned(),
    };
    let what = if own.is_empty() {
        version.to_owned()
    } else {
        format!("{version}, not delegated to you here")
    };
    Finding::warn(name, what, hint)
}

fn scratch(folder: &Path) -> Finding {
    let name = "scratch";
    if let Err(error) = tempfile::tempfile_in(folder) {
        let hint = "let TMPDIR, or `scratch` in the configuration, name a folder of this node that you may write to";
        return Finding::fail(name, format!("{}: {error}", folder.display()), Some(hint.to_owned()));
    }
    let place = Place::of(folder);
    let what = place.told(folder);
    if place.is_shared() {
        return Finding::warn(
            name,
            what,
            "a folder on the node's own disk is faster and disturbs nobody: `scratch` in the configuration",
        );
    }
    match place.free {
        Some(free) if free < LITTLE => Finding::warn(name, what, "tasks get little room for temporary files"),
        _ => Finding::ok(name, what),
    }
}

fn cache(folder: &Path) -> Finding {
    let name = "cache";
    // What does not exist yet will be made in the first folder above it that does.
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    if nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK).is_err() {
        let hint = "let DVRUN_CACHE, or `cache` in the configuration, name a folder that you may write to";
        return Finding::fail(name, format!("{} cannot be written to", folder.display()), Some(hint.to_owned()));
    }
    let place = Place::of(existing);
    let what = place.told(folder);
    match place.free {
        _ if place.kind == "tmpfs" => Finding::warn(name, what, "it is gone when this machine restarts, and other nodes do not see it"),
        Some(free) if free < LITTLE => Finding::warn(name, what, "`dvrun image prune` makes room; DVRUN_CACHE names another place"),
        _ => Finding::ok(name, what),
    }
}

fn cluster() -> Finding {
    let name = "slurm";
    if let Some(path) = slurm::missing_configuration(&Vec::from_iter(std::env::vars_os())) {
        let what = format!("SLURM_CONF names {}, which is not there", path.display());
        return Finding::warn(name, what, "is this a host of the cluster? `dvrun run` works here");
    }
    match said("sbatch", "--version") {
        None if on_path("sbatch") => Finding::warn(
            name,
            "there is an sbatch, and it cannot even tell its version",
            "run `sbatch --version` to see why: as a rule it finds no configuration (SLURM_CONF), and this is no host of a cluster",
        ),
        None => Finding::warn(
            name,
            "there is no sbatch on PATH",
            "`dvrun run` works here; `dvrun submit` needs a host of the cluster",
        ),
        Some(version) => match said("scontrol", "ping") {
            Some(ping) if ping.contains("UP") => Finding::ok(name, version),
            _ => Finding::warn(
                name,
                format!("{version}, whose controller does not answer"),
                "look at SLURM_CONF, or ask the administrator",
            ),
        },
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn apptainer() -> Finding {
    let found = ["apptainer", "singularity"]
        .into_iter()
        .find_map(|program| said(program, "--version"));
    Finding::ok("apptainer", found.unwrap_or_else(|| "none, and none is needed".to_owned()))
}

fn registries(settings: &Settings) -> Finding {
    let name = "registries";
    let file = match credentials::docker(settings.home.as_deref()) {
        Ok(file) => file,
        Err(_) => {
            return Finding::warn(
                name,
                "there is no place for credentials: HOME is not set",
                "set HOME, or DOCKER_CONFIG",
            );
        }
    };
    let mut parts = vec![match file.is_file() {
        true => format!("credentials in {}", file.display()),
        false => "no credentials (public images need none)".to_owned(),
    }];
    let proxy = &settings.net.proxy;
    if let Some(proxy) = proxy.https.as_ref().or(proxy.http.as_ref()) {
        // It may hold a password.
        parts.push(format!("by the proxy {}", proxy.rsplit('@').next().unwrap_or(proxy)));
    }
    if !settings.net.mirrors.is_empty() {
        parts.push(format!("{} mirror rules", settings.net.mirrors.len()));
    }
    Finding::ok(name, parts.join(", "))
}

/// Where a folder lies.
struct Place {
    kind: String,
    free: Option<u64>,
}

impl Place {
    fn of(folder: &Path) -> Place {
        let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = table.split(|&byte| byte == b'\n').filter_map(mount);
        // Of those that are as near, the last one covers the others.
        let nearest = mounts
            .filter(|(point, _)| real.starts_with(point))
            .max_by_key(|(point, _)| point.components().count());
        let free = nix::sys::statvfs::statvfs(&real).ok();
        Place {
            kind: nearest.map_or_else(|| "an unknown file system".to_owned(), |(_, kind)| kind),
            free: free.map(|free| free.blocks_available().saturating_mul(free.fragment_size())),
        }
    }

    fn is_shared(&self) -> bool {
        SHARED.contains(&self.kind.as_str())
    }

    fn told(&self, folder: &Path) -> String {
        let free = self.free.map(|free| format!(", {} free", HumanBytes(free))).unwrap_or_default();
        format!("{} on {}{free}", folder.display(), self.kind)
    }
}

/// Mount point and type of a line of mountinfo (proc(5)); points with escapes are none that matter here.
fn mount(line: &[u8]) -> Option<(PathBuf, String)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let point = fields.nth(4)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some((
        Path::new(OsStr::from_bytes(point)).to_owned(),
        String::from_utf8_lossy(kind).into_owned(),
    ))
}

/// The first line that a program says; `None` where it is not there or fails.
fn said(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output
        .status
        .success()
        .then(|| text.lines().next().unwrap_or_default().trim().to_owned())
}

/// The text of a file; empty where it cannot be read, which then says as much as its absence.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_of_a_folder() {
        let line = b"36 35 98:0 / /scratch rw,noatime shared:1 master:2 - lustre mds@tcp:/fs rw";
        assert_eq!(mount(line), Some((PathBuf::from("/scratch"), "lustre".to_owned())));
        assert_eq!(mount(b""), None);
        assert_eq!(Place::of(Path::new("/proc/self")).kind, "proc");
    }
}
