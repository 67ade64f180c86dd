//! Roots that are one file: SquashFS through our server, or unpacked.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dvrun::runtime::{Container, ImageAccess, Kernel, Root, RuntimeError, Status, Stdio, Stream, Writable, spawn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fixture::*;
use super::roots::TYPE_OF_ROOT;
use crate::support::{binary, finish, lane, overlays, wait_until};

pub const SOON: Duration = Duration::from_secs(60);

pub fn ready_for(access: ImageAccess) -> bool {
    ready()
        && lane(
            "mksquashfs: not installed",
            Command::new("mksquashfs").arg("-version").output().is_ok(),
        )
        && (access == ImageAccess::Extract
            || lane(
                "/dev/fuse with mode 0666",
                File::options().read(true).write(true).open("/dev/fuse").is_ok(),
            ))
}

/// A fixture whose root is packed.
pub struct Packed {
    pub fixture: Fixture,
    pub access: ImageAccess,
}

impl Packed {
    pub fn new(fixture: Fixture, access: ImageAccess, options: &[&str]) -> Packed {
        fs::create_dir(fixture.folder.path().join("scratch")).expect("a folder");
        let packed = Packed { fixture, access };
        let mut command = Command::new("mksquashfs");
        command.arg(packed.fixture.root()).arg(packed.image());
        finish(command.args(["-noappend", "-quiet", "-no-progress"]).args(options)).ok();
        packed
    }

    pub fn image(&self) -> PathBuf {
        self.fixture.folder.path().join("image.squashfs")
    }

    fn scratch(&self) -> PathBuf {
        self.fixture.folder.path().join("scratch")
    }

    /// What lies in the scratch folder: one folder of the user's own, and in it the copies.
    fn copies(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.scratch()).unwrap().map(|entry| entry.unwrap().path());
        folders
            .flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
            .collect()
    }

    pub fn shell(&self, script: &str) -> Container {
        Container {
            root: Root::Squashfs {
                file: self.image(),
                offset: 0,
                access: self.access,
                scratch: self.scratch(),
            },
            ..self.fixture.shell(script)
        }
    }
}

/// Fills the image's `/data` with what takes more than one block, and what shares one.
pub fn with_data(fixture: Fixture) -> Fixture {
    let data = fixture.root().join("data");
    let mut random = fastrand::Rng::with_seed(7);
    fs::write(data.join("noise"), (0..3_000_001).map(|_| random.u8(..)).collect::<Vec<u8>>()).unwrap();
    let lines: String = (0..200_000).map(|at| format!("line {at}\n")).collect();
    fs::write(data.join("lines"), lines).unwrap();
    let sparse = File::create(data.join("sparse")).unwrap();
    sparse.write_all_at(b"here", 1_000_000).unwrap();
    sparse.set_len(2_000_000).unwrap();
    fs::create_dir(data.join("many")).unwrap();
    for at in 0..300 {
        fs::write(data.join(format!("many/{at}")), at.to_string()).unwrap();
    }
    fs::hard_link(data.join("lines"), data.join("many/lines")).unwrap();
    std::os::unix::fs::symlink("many/17", data.join("link")).unwrap();
    set_mode(&data.join("many/3"), 0o4755);
    set_mode(&data.join("many/4"), 0o600);
    set_mode(&data.join("many"), 0o555);
    fixture
}

/// Type, mode, size, time, links' targets and contents of everything below a folder.
pub const EVERYTHING: &str = "cd $AT && find . | sort | while read -r f; do stat -c '%n %F %a %Y' $f; test -d $f || stat -c %s $f; \
    test ! -L $f || readlink $f; test ! -f $f || test ! -r $f || md5sum < $f; done";

pub fn applets(fixture: Fixture) -> Fixture {
    for applet in ["find", "md5sum"] {
        std::os::unix::fs::symlink("busybox", fixture.root().join("bin").join(applet)).unwrap();
    }
    fixture
}

#[test]
fn the_whole_tree_is_as_it_was_packed() {
    for access in [ImageAccess::Fuse, ImageAccess::Extract] {
        if !ready_for(access) {
            return;
        }
        for options in [
            &["-comp", "zstd"][..],
            &["-comp", "gzip", "-b", "4096"],
            &["-comp", "xz", "-no-fragments", "-b", "1M"],
        ] {
            let packed = Packed::new(with_data(applets(Fixture::new())), access, options);
            let mut container = packed.shell(EVERYTHING);
            container.binds = vec![bind_read_only(packed.fixture.root().join("data"), "/host/data")];
            container.env.push(("AT".into(), "/data".into()));
            let image = run(&container);
            container.env.last_mut().unwrap().1 = "/host/data".into();
            let folder = run(&container);
            assert_eq!((image.code, image.err.as_str()), (0, ""), "{options:?}");
            assert!(folder.out.lines().count() > 900, "{}", folder.err);
            assert!(
                image.out == folder.out,
                "{options:?}: {}",
                first_difference(&image.out, &folder.out)
            );
        }
    }
}

/// A FUSE server would be asked about each `ioctl`.
#[test]
fn a_served_image_lies_under_an_overlay_where_there_is_one() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let look = format!("{TYPE_OF_ROOT}; stat -c %a /; cd /; echo *; cat /data/file");
    for (fixture, missing) in [(Fixture::complete(), false), (Fixture::new(), true)] {
        set_mode(&fixture.root(), 0o751);
        let packed = Packed::new(fixture, ImageAccess::Fuse, &[]);
        let container = packed.shell(&look);
        let [over, under] = [true, false].map(|overlay| {
            let kernel = Kernel {
                overlay,
                ..Kernel::default()
            };
            let done = run_with(&container, kernel);
            assert_eq!((done.code, done.err.as_str()), (0, ""));
            done.out
        });
        let rest = |text: &str| text.split_once('\n').unwrap().1.to_owned();
        assert!(over.starts_with("/ overlay ro\n751\n") || !overlays(), "{over}");
        // Where something is missing the other way is a folder of parts.
        assert!(missing || under.starts_with("/ fuse.dvrun ro\n"), "{under}");
        assert!(missing || rest(&over) == rest(&under), "{over}{under}");
    }
}

fn first_difference(a: &str, b: &str) -> String {
    let found = a.lines().zip(b.lines()).find(|(a, b)| a != b);
    format!("{found:?}")
}

#[test]
fn random_pieces_read_by_many_at_once_are_the_files() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let packed = Packed::new(with_data(Fixture::new()), ImageAccess::Fuse, &["-comp", "zstd", "-b", "32K"]);
    let mut random = fastrand::Rng::with_seed(3);
    let whole: Vec<(&str, Vec<u8>)> = ["noise", "lines", "sparse"]
        .map(|name| (name, fs::read(packed.fixture.root().join("data").join(name)).unwrap()))
        .into();
    let (mut script, mut expected) = (String::new(), Vec::new());
    for reader in 0..4 {
        let mut pieces: Vec<u8> = Vec::new();
        script += "(";
        for _ in 0..60 {
            let (name, bytes) = &whole[random.usize(..whole.len())];
            let (from, length) = (random.usize(..bytes.len()), random.usize(1..200_000));
            pieces.extend(&bytes[from..(from + length).min(bytes.len())]);
            script += &format!("dd if=/data/{name} iflag=skip_bytes,count_bytes bs=64k skip={from} count={length} 2>/dev/null; ");
        }
        script += &format!(") > /out/{reader} & ");
        expected.push(pieces);
    }
    let mut container = packed.shell(&format!("{script} wait"));
    container.binds = vec![bind(packed.fixture.host(), "/out")];
    let done = run(&container);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    for (reader, pieces) in expected.iter().enumerate() {
        assert!(
            fs::read(packed.fixture.on_host(&reader.to_string())).unwrap() == *pieces,
            "reader {reader}"
        );
    }
}

#[test]
fn a_writable_root_forgets_over_an_image_file_too() {
    for access in [ImageAccess::Fuse, ImageAccess::Extract] {
        if !ready_for(access) {
            return;
        }
        let packed = Packed::new(Fixture::complete(), access, &[]);
        let script =
            "echo new > /data/new; echo more >> /data/file; rm -r /usr/share; mkdir /opt; cat /data/file /data/new; ls -d /opt /usr/share";
        let mut container = packed.shell(script);
        container.writable = Writable::Tmpfs;
        if overlays() {
            let done = run(&container);
            assert_eq!(done.out, "of the image\nmore\nnew\n/opt\n", "{}", done.err);
        }
        assert_prints(
            &packed.shell("cat /data/*; ls -d /usr/share; touch /data/new 2>/dev/null || echo refused"),
            "of the image\n/usr/share\nrefused\n",
        );
        // Nothing of how it came about is to be seen.
        assert_prints(&packed.shell("ls /proc/fs | wc -l; ls /tmp"), &{
            let host = fs::read_dir("/proc/fs").unwrap().count();
            format!("{host}\n")
        });
    }
}

/// Overwrites stored bytes of an image.
pub fn damage(image: &Path, at: u64) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&[0x55; 64], at).unwrap();
}

#[test]
fn damaged_blocks_give_an_error_and_a_message() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    // zlib has a checksum of every block. The data comes right behind the superblock, and large files before small ones.
    let fixture = Fixture::new();
    fs::remove_dir_all(fixture.root().join("usr")).unwrap();
    let lines: String = (0..200_000).map(|at| format!("line {at}\n")).collect();
    fs::write(fixture.root().join("data/aaa"), &lines).unwrap();
    let packed = Packed::new(fixture, ImageAccess::Fuse, &["-comp", "gzip", "-sort", "/dev/null"]);
    let size = fs::metadata(packed.image()).unwrap().len();
    let script = "cat /data/file; cat /data/aaa > /dev/null && echo read; cat /bin/busybox > /dev/null && echo read; cat /data/file";
    let before = run(&packed.shell(script));
    assert_eq!(before.out, "of the image\nread\nread\nof the image\n");
    // Somewhere in the second block of busybox or of the lines: whichever was packed there.
    let container = packed.shell(script);
    let reached = (1..40).map(|step| size * step / 80).any(|at| {
        let good = fs::read(packed.image()).unwrap();
        damage(&packed.image(), at);
        let (out, err) = (capture(), capture());
        let found = match start_with(&container, Default::default(), Stream::Null, &out, &err) {
            // Busybox itself may be hit.
            Err(_) => false,
            Ok(mut running) => {
                let exit = running.wait().unwrap();
                let (mut out, mut err) = (out, err);
                let (out, err) = (text(&mut out), text(&mut err));
                let told = running.damage().iter().any(|what| what.contains("damaged"));
                exit.status.code() == 0 && out.matches("read").count() == 1 && err.contains("Input/output error") && told
            }
        };
        fs::write(packed.image(), good).unwrap();
        found
    });
    assert!(reached, "no damage was noticed");
    assert_eq!(run(&packed.shell(script)).out, before.out);
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let packed = Packed::new(Fixture::new(), ImageAccess::Fuse, &[]);
    fs::write(packed.image(), "no image\n".repeat(100)).unwrap();
    let error = refused(&packed.shell("true"));
    assert!(
        matches!(&error, RuntimeError::Image { reason, .. } if reason.contains("no SquashFS")),
        "{error:?}"
    );
    assert!(error.hint().is_some());
    fs::remove_file(packed.image()).unwrap();
    assert!(matches!(refused(&packed.shell("true")), RuntimeError::Root { .. }));
}

pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn kill_of_the_server_or_of_the_monitor_leaves_nothing() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let packed = Packed::new(Fixture::complete(), ImageAccess::Fuse, &[]);
    for victim in ["server", "first", "monitor"] {
        let (reader, writer) = std::io::pipe().unwrap();
        let stdio = Stdio {
            stdin: Stream::Null,
            stdout: Stream::Fd(writer.into()),
            stderr: Stream::Null,
        };
        // All that it will do it has done once: a program that needs the server the moment after its death ends by SIGBUS.
        let mut running = spawn(&binary(), &packed.shell("sleep 0; echo ready; sleep 1000"), stdio).unwrap();
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let monitor = running.pid();
        let [server, first] = children(monitor)[..] else {
            panic!("{:?}", children(monitor));
        };
        let program = children(first);
        let pid = match victim {
            "server" => server,
            "first" => first,
            _ => monitor,
        };
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
        assert_eq!(running.wait().unwrap().status, Status::Signaled(9), "{victim}");
        for pid in [monitor, server, first].into_iter().chain(program) {
            wait_until("all processes are gone", SOON, || !alive(pid));
        }
    }
}

#[test]
fn a_copy_is_shared_and_removed_by_the_last() {
    if !ready_for(ImageAccess::Extract) {
        return;
    }
    let packed = Packed::new(Fixture::complete(), ImageAccess::Extract, &[]);
    let script = "echo ready; cat /host/gate; cat /data/file";
    let gate = packed.fixture.on_host("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let start = || {
        let mut container = packed.shell(script);
        container.binds = vec![bind(packed.fixture.host(), "/host")];
        let out = capture();
        let running = start_with(&container, Default::default(), Stream::Null, &out, &capture()).unwrap();
        (running, out)
    };
    let (mut one, mut one_out) = start();
    let copies = packed.copies();
    assert_eq!(copies.len(), 3, "the copy and its locks: {copies:?}");
    let (mut two, mut two_out) = start();
    assert_eq!(packed.copies().len(), 3);
    // A monitor that is killed leaves the copy to the other.
    let killed = start().0;
    let tree = children(killed.pid());
    kill(Pid::from_raw(killed.pid() as i32), Signal::SIGKILL).unwrap();
    drop(killed);
    // As long as its first process is dying, it still has a hand on the copy.
    wait_until("nothing of the killed one is left", SOON, || !tree.iter().any(|&pid| alive(pid)));
    assert_eq!(packed.copies().len(), 3);
    // Both read the gate until nobody writes to it any more.
    drop(File::options().write(true).open(&gate).unwrap());
    for (running, out) in [(&mut one, &mut one_out), (&mut two, &mut two_out)] {
        let ended = running.wait_for(Duration::from_millis(0)).unwrap();
        if ended.is_none() {
            // It may have opened the gate only now.
            wait_until("the program has ended", SOON, || {
                let opened = File::options().write(true).custom_flags_nonblocking().open(&gate);
                drop(opened);
                running.wait_for(Duration::from_millis(1)).unwrap().is_some()
            });
        }
        assert_eq!(text(out), "ready\nof the image\n");
    }
    assert_eq!(packed.copies(), Vec::<PathBuf>::new());
}

/// Two that end together must not leave the copy to each other: the one that finds the other at it waits.
#[test]
fn who_ends_while_another_looks_at_the_copy_removes_it() {
    if !ready_for(ImageAccess::Extract) {
        return;
    }
    let packed = Packed::new(Fixture::complete(), ImageAccess::Extract, &[]);
    let gate = packed.fixture.on_host("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut container = packed.shell("cat /host/gate");
    container.binds = vec![bind(packed.fixture.host(), "/host")];
    let running = start_with(&container, Default::default(), Stream::Null, &capture(), &capture()).unwrap();
    let making = packed
        .copies()
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "make"));
    let other = File::open(making.unwrap()).unwrap();
    other.lock().unwrap();
    drop(File::options().write(true).open(&gate).unwrap());
    let monitor = running.pid();
    let waits = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks
            .lines()
            .any(|line| line.contains("->") && line.split_whitespace().any(|word| word == monitor.to_string()))
    };
    wait_until("it waits for the other", SOON, || waits() || !alive(monitor));
    drop(other);
    let mut running = running;
    assert!(running.wait().unwrap().status.success());
    assert_eq!(packed.copies(), Vec::<PathBuf>::new());
}

/// Opening a FIFO for writing when nobody reads must not wait.
trait NonBlocking {
    fn custom_flags_nonblocking(&mut self) -> &mut Self;
}

impl NonBlocking for fs::OpenOptions {
    fn custom_flags_nonblocking(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, nix::fcntl::OFlag::O_NONBLOCK.bits())
    }
}

#[test]
fn many_at_once_leave_nothing() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let packed = Packed::new(Fixture::new(), ImageAccess::Fuse, &[]);
    let container = packed.shell("cat /data/file");
    for _ in 0..4 {
        let started: Vec<_> = (0..10)
            .map(|_| {
                let out = capture();
                let running = start_with(&container, Default::default(), Stream::Null, &out, &capture()).unwrap();
                (running, out)
            })
            .collect();
        for (mut running, mut out) in started {
            assert_eq!(running.wait().unwrap().status, Status::Exited(0));
            assert_eq!(text(&mut out), "of the image\n");
            assert!(!Path::new(&format!("/proc/{}", running.pid())).exists());
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("fuse.dvrun"), "{mounts}");
    assert!(packed.copies().is_empty());
}
