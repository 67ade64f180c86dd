//! Reading an image file through dvrun's FUSE server, beside `squashfuse_ll` where it is installed: `cargo bench --bench fuse`,
//! as an ordinary user, with squashfs-tools. The same reader runs in the container and on the peer's mount, and tells how long
//! it took; each measurement begins with a server that has just been started.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const READER: &str = "__read";
const KINDS: [&str; 5] = ["sequential", "sequential by two", "random 16 KiB", "random by two", "walk"];
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == READER) {
        println!("{}", read(&arguments[2], Path::new(&arguments[3])).as_micros());
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tree = dir.path().join("tree");
    make_tree(&tree);
    for compression in ["zstd", "gzip"] {
        let image = dir.path().join(compression);
        let mut pack = Command::new("mksquashfs");
        pack.arg(&tree).arg(&image).args(["-comp", compression, "-quiet", "-no-progress"]);
        assert!(pack.stdout(Stdio::null()).status().expect("squashfs-tools").success());
        for kind in KINDS {
            let own = median(|| in_container(&image, kind, dir.path()));
            let peer = median(|| in_peer(&image, kind, dir.path()));
            let shown =
                |time: Option<Duration>| time.map_or("not available".to_owned(), |time| format!("{:.1} ms", time.as_secs_f64() * 1e3));
            let ratio = own.zip(peer).map(|(own, peer)| peer.as_secs_f64() / own.as_secs_f64());
            println!(
                "{compression} {kind:<18} dvrun {:>10}  squashfuse_ll {:>13}  ratio {}",
                shown(own),
                shown(peer),
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
            );
        }
    }
}

/// 128 MiB that compress by about a half, and 20,000 small files.
fn make_tree(tree: &Path) {
    fs::create_dir_all(tree.join("large")).expect("a folder");
    let mut random = fastrand::Rng::with_seed(1);
    for file in 0..4 {
        let bytes: Vec<u8> = (0..32 << 20).map(|_| b"ACGTNacgt\n0123456"[random.usize(..17)]).collect();
        fs::write(tree.join(format!("large/{file}")), bytes).expect("room on the disk");
    }
    for folder in 0..200 {
        let folder = tree.join(format!("small/{folder}"));
        fs::create_dir_all(&folder).expect("a folder");
        for file in 0..100 {
            fs::write(folder.join(format!("module_{file}.py")), format!("print({file})\n").repeat(file)).expect("room on the disk");
        }
    }
}

fn read(kind: &str, root: &Path) -> Duration {
    let start = Instant::now();
    let files = ["0", "1", "2", "3"].map(|name| root.join("large").join(name));
    match kind {
        "sequential" => sequential(&files),
        "sequential by two" => by_two(|half| sequential(&files[half * 2..half * 2 + 2])),
        "random 16 KiB" => random(&files, 0, 3000),
        "random by two" => by_two(|half| random(&files, half as u64, 1500)),
        _ => walk(root),
    }
    start.elapsed()
}

fn by_two(work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        scope.spawn(|| work(0));
        work(1);
    });
}

fn sequential(files: &[PathBuf]) {
    let mut buffer = vec![0; 256 << 10];
    for file in files {
        let file = File::open(file).expect("it was packed");
        let mut at = 0;
        loop {
            match file.read_at(&mut buffer, at).expect("it can be read") {
                0 => break,
                got => at += got as u64,
            }
        }
    }
}

fn random(files: &[PathBuf], seed: u64, count: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let files: Vec<File> = files.iter().map(|file| File::open(file).expect("it was packed")).collect();
    let mut buffer = vec![0; 16 << 10];
    for _ in 0..count {
        let at = random.u64(..(32 << 20) - buffer.len() as u64);
        files[random.usize(..files.len())]
            .read_exact_at(&mut buffer, at)
            .expect("it can be read");
    }
}

fn walk(root: &Path) {
    let files = walkdir::WalkDir::new(root.join("small"))
        .into_iter()
        .filter(|entry| entry.as_ref().expect("it can be read").metadata().is_ok());
    assert!(files.count() > 20_000);
}

fn in_container(image: &Path, kind: &str, dir: &Path) -> Option<Duration> {
    let dvrun = std::env::var_os("DVRUN_BENCH_EXE").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_dvrun")), PathBuf::from);
    let own = std::env::current_exe().expect("this program");
    let mut command = Command::new(dvrun);
    command
        .arg("exec")
        .arg(image)
        .arg("--bind")
        .arg(format!("{}:/reader:ro", own.display()));
    command.args(["--", "/reader", READER, kind, "/"]).env("HOME", dir);
    told(&mut command)
}

fn in_peer(image: &Path, kind: &str, dir: &Path) -> Option<Duration> {
    let point = dir.join("mount");
    fs::create_dir_all(&point).expect("a folder");
    let mounted = Command::new("squashfuse_ll").arg(image).arg(&point).stderr(Stdio::null()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        return None;
    }
    let time = told(
        Command::new(std::env::current_exe().expect("this program"))
            .arg(READER)
            .arg(kind)
            .arg(&point),
    );
    let ended = ["fusermount3", "fusermount", "umount"].into_iter().any(|program| {
        Command::new(program)
            .args(if program == "umount" { vec![] } else { vec!["-u"] })
            .arg(&point)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    });
    assert!(ended, "{} is still mounted", point.display());
    time
}

/// The microseconds that a reader prints.
fn told(command: &mut Command) -> Option<Duration> {
    let output = command.stderr(Stdio::inherit()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().parse().ok().map(Duration::from_micros)
}

fn median(mut measure: impl FnMut() -> Option<Duration>) -> Option<Duration> {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| measure()).collect::<Option<_>>()?;
    times.sort();
    Some(times[ROUNDS / 2])
}
