//! Programs run from an empty state, and measured.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dvrun::store::remove_tree;
use nix::sys::resource::{UsageWho, getrusage};
use walkdir::WalkDir;

/// What a run took, and what came of it.
pub struct Measured {
    pub seconds: f64,
    /// Of all its processes.
    pub cpu: f64,
    /// Of the result: a file, or a folder's files.
    pub bytes: u64,
    /// The most memory it had at once, where it is one process.
    pub peak: Option<u64>,
}

/// What a peer is compared with.
#[derive(Clone, Copy, PartialEq)]
pub enum Ours {
    Zstd,
    Gzip,
    Folder,
}

pub struct Peer {
    pub name: &'static str,
    program: &'static str,
    /// In an empty folder; makes `out` there.
    script: &'static str,
    pub against: &'static [Ours],
}

/// As their users would call them. enroot asks for a manifest of any type before it asks for one, and `docker-registry` has no OCI manifest for who
/// does not name it: curl's own configuration names it.
///
/// `$image` is `HOST:PORT/NAME:TAG`, `$registry` and `$name` its halves; `$secure` is the same registry behind TLS.
pub const PEERS: [Peer; 6] = [
    Peer {
        name: "apptainer pull (gzip)",
        program: "apptainer",
        script: "apptainer -q pull --no-https out docker://$image",
        against: &[Ours::Zstd, Ours::Gzip],
    },
    Peer {
        name: "apptainer build (zstd:3)",
        program: "apptainer",
        script: "apptainer -q build --no-https --mksquashfs-args '-comp zstd -Xcompression-level 3' out docker://$image",
        against: &[Ours::Zstd],
    },
    Peer {
        name: "enroot import (data as it is)",
        program: "enroot",
        script: "enroot import -o out docker://$registry#$name",
        against: &[Ours::Zstd],
    },
    Peer {
        name: "enroot import (zstd:3)",
        program: "enroot",
        script: "export ENROOT_SQUASH_OPTIONS='-comp zstd -Xcompression-level 3 -exit-on-error'; enroot import -o out docker://$registry#$name",
        against: &[Ours::Zstd],
    },
    Peer {
        name: "ch-image + ch-convert",
        program: "ch-image",
        script: "ch-image --tls-no-verify pull $secure/$name bench >&2; ch-convert -o squash bench out",
        against: &[Ours::Gzip],
    },
    Peer {
        name: "skopeo copy + umoci unpack",
        program: "umoci",
        script: "skopeo copy -q --insecure-policy --src-tls-verify=false docker://$image oci:layout:1; \
                 umoci unpack --rootless --image layout:1 out",
        against: &[Ours::Folder],
    },
];

fn aside(work: &Path) -> PathBuf {
    work.with_extension("aside")
}

/// Removes what all programs have made, and waits until nothing of that slows down who comes next.
pub fn clear(work: &Path) {
    const LEFT_ALONE: Duration = Duration::from_secs(36);
    let there = aside(work).exists();
    for folder in [work, &aside(work)] {
        remove_tree(folder).expect("it is ours");
    }
    if there {
        std::thread::sleep(LEFT_ALONE);
    }
}

/// `dvrun pull` with an empty store.
pub fn dvrun(work: &Path, reference: &str, arguments: &[&str]) -> Measured {
    empty(work);
    let mut command = Command::new(super::binary());
    command
        .args(["--quiet", "pull", reference, "-o"])
        .arg(work.join("out"))
        .args(arguments)
        .env("DVRUN_CACHE", work.join("cache"))
        .stdout(Stdio::null());
    let measured = measure(&mut command, work, Watch::Peak);
    empty(work);
    measured.unwrap_or_else(|status| panic!("{command:?}: {status}"))
}

/// The same by a peer.
///
/// # Errors
/// Why there is nothing to compare with, in words.
pub fn peer(peer: &Peer, enter: &[String], work: &Path, (registry, secure): (&str, &str), name: &str) -> Result<Measured, String> {
    let there = |enter: &&[String]| {
        let mut look = shell(enter, work, &format!("command -v {}", peer.program));
        let found = look.stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    // What is not where the others are may be on this machine itself.
    let enter = [enter, &[]].into_iter().find(there).ok_or("not installed")?;
    empty(work);
    let place = work.display();
    let script = format!(
        "cd '{place}'; here=$PWD; registry={registry} secure={secure} name={name}; image=$registry/$name; mkdir -m 700 run\n\
         export TMPDIR=$here APPTAINER_CACHEDIR=$here/cache APPTAINER_TMPDIR=$here CH_IMAGE_STORAGE=$here/storage\n\
         export ENROOT_ALLOW_HTTP=yes ENROOT_CACHE_PATH=$here/cache ENROOT_DATA_PATH=$here/data ENROOT_RUNTIME_PATH=$here/run\n\
         export CURL_HOME=$here; echo 'header = \"Accept: application/vnd.oci.image.manifest.v1+json\"' > .curlrc\n{}",
        peer.script
    );
    let measured = measure(&mut shell(enter, work, &script), work, Watch::Nothing);
    empty(work);
    measured.map_err(|status| format!("failed: {status}"))
}

fn shell(enter: &[String], work: &Path, script: &str) -> Command {
    let mut words = enter.iter().map(String::as_str).chain(["sh", "-ec", script]);
    let mut command = Command::new(words.next().expect("at least the shell"));
    command.args(words).env("PEERS_BIND", work);
    command
}

#[derive(Clone, Copy, PartialEq)]
enum Watch {
    Peak,
    Nothing,
}

fn measure(command: &mut Command, work: &Path, watch: Watch) -> Result<Measured, ExitStatus> {
    let before = processor(UsageWho::RUSAGE_CHILDREN);
    let start = Instant::now();
    let mut child = command.spawn().expect("it can be started");
    let mut peak = None;
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            break status;
        }
        if watch == Watch::Peak {
            peak = high_water(child.id()).max(peak);
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(status);
    }
    Ok(Measured {
        seconds,
        cpu: processor(UsageWho::RUSAGE_CHILDREN) - before,
        bytes: size(&work.join("out")),
        peak,
    })
}

/// Processor seconds, of children: of all that have ended.
pub fn processor(who: UsageWho) -> f64 {
    let usage = getrusage(who).expect("it always answers");
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

fn high_water(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

fn size(path: &Path) -> u64 {
    let files = WalkDir::new(path).into_iter().filter_map(Result::ok);
    files
        .filter_map(|entry| entry.metadata().ok())
        .filter(|meta| meta.is_file())
        .map(|meta| meta.len())
        .sum()
}

/// For whichever user a peer runs as. What was there is put aside: ext4 leaves the inodes of removed files alone for half a minute, and
/// passes over them one by one for each new file, which makes the next program twice as slow.
fn empty(work: &Path) {
    let aside = aside(work);
    fs::create_dir_all(&aside).expect("target is writable");
    let number = fs::read_dir(&aside).expect("it was made").count();
    match fs::rename(work, aside.join(number.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{}: {error}", work.display()),
        _ => {}
    }
    // Nor is what the last one wrote to be written to the disk beside the next one.
    nix::unistd::sync();
    fs::create_dir_all(work).expect("target is writable");
    fs::set_permissions(work, fs::Permissions::from_mode(0o777)).expect("it is ours");
}
