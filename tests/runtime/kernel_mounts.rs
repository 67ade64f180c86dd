//! Images that the kernel itself mounts, for root: the same to a program as by our server, and nothing left.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ProcessStdio};

use dvrun::runtime::{ImageAccess, NoKernelMount, Root, RuntimeError, User, Writable, may_mount_by_kernel};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;

use super::care::descendants;
use super::fixture::*;
use super::image_files::{EVERYTHING, Packed, SOON, alive, applets, children, with_data};
use crate::support::layers::{Packing, archive, file, folder, layout, symlink};
use crate::support::{Sandbox, as_root, finish, lane, overlays, wait_until};

/// Whether this is root, and root may mount.
fn ready_as_root() -> bool {
    as_root()
        && lane("busybox-static", Path::new("/bin/busybox").exists())
        && lane(
            "mksquashfs: not installed",
            Command::new("mksquashfs").arg("-version").output().is_ok(),
        )
        && lane("the kernel's SquashFS and loop devices", may_mount_by_kernel().is_ok())
}

/// As `mksquashfs` packs what Apptainer builds.
const ALL_ROOTS: &str = "-all-root";

/// The loop devices that show `image`.
fn devices(image: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir("/sys/block")
        .expect("sysfs")
        .map(|entry| entry.expect("an entry").path());
    let shows =
        |device: &PathBuf| fs::read_to_string(device.join("loop/backing_file")).is_ok_and(|file| Path::new(file.trim_end()) == image);
    all.filter(shows).collect()
}

/// What the kernel takes away by itself, it takes away soon.
#[track_caller]
fn assert_nothing_is_left(image: &Path) {
    wait_until("the loop device is free again", SOON, || devices(image).is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    assert!(!mounts.contains(" /proc/fs "), "{mounts}");
}

#[test]
fn the_kernel_shows_the_tree_that_our_server_shows_as_root() {
    if !ready_as_root() {
        return;
    }
    for options in [["-comp", "zstd", ALL_ROOTS], ["-comp", "gzip", ALL_ROOTS]] {
        let mut packed = Packed::new(with_data(applets(Fixture::complete())), ImageAccess::Fuse, &options);
        let seen = |packed: &Packed, user: User| {
            let mut container = packed.shell(EVERYTHING);
            container.user = user;
            container.env.push(("AT".into(), "/data".into()));
            let done = run(&container);
            assert_eq!((done.code, done.err.as_str()), (0, ""), "{options:?}");
            done.out
        };
        let served = seen(&packed, User::Caller);
        assert!(served.lines().count() > 900, "{served}");
        packed.access = ImageAccess::Kernel;
        for user in [User::Caller, User::Root, User::Image("17:18".into())] {
            assert!(seen(&packed, user.clone()) == served, "{options:?} {user:?}");
        }
        let mut container = packed.shell("grep -q ' / / .* squashfs ' /proc/self/mountinfo && stat -c %u:%g /data/file");
        container.argv[2] = container.argv[2].replace("grep", "busybox grep");
        container.user = User::Image("17:18".into());
        assert_prints(&container, "17:18\n");
        assert_nothing_is_left(&packed.image());
    }
}

#[test]
fn a_sif_runs_by_the_kernel_as_root() {
    if !ready_as_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut layer = vec![
        folder("bin"),
        file("bin/busybox", fs::read("/bin/busybox").unwrap()).mode(0o755),
        folder("data"),
    ];
    layer.extend(["sh", "find", "sort", "stat", "md5sum", "test", "readlink"].map(|name| symlink(format!("bin/{name}"), "busybox")));
    layer.extend((0..200_u32).map(|at| file(format!("data/{at}"), at.to_string().repeat(1 + at as usize * 31))));
    let dir = sandbox.path().join("layout");
    layout(&dir, "t", Packing::Zstd, &[archive(&layer)]);
    for compression in ["zstd", "gzip"] {
        for format in ["sif", "squashfs"] {
            let name = format!("{compression}.{format}");
            sandbox.config("{}\n");
            let mut pull = sandbox.dvrun();
            pull.args(["pull", &format!("oci:{}:t", dir.display()), "-o", &name, "--format", format]);
            finish(pull.args(["--compression", compression])).ok();
            let seen = ["fuse", "kernel", "auto"].map(|access| {
                sandbox.config(&format!("runtime: {{image_access: {access}}}\n"));
                let mut exec = sandbox.dvrun();
                exec.args(["exec", "--env", "PATH=/bin", "--env", "AT=/data", &format!("./{name}")]);
                let done = finish(exec.args(["--", "sh", "-c", EVERYTHING])).ok();
                assert_eq!(done.stderr, "", "{name} {access}");
                done.stdout
            });
            assert!(seen[0].lines().count() > 600, "{}", seen[0]);
            assert!(seen[0] == seen[1] && seen[0] == seen[2], "{name}");
            assert_nothing_is_left(&sandbox.work().join(&name));
        }
    }
}

/// `dvrun exec` of a script that says `ready` and stays, which it has said.
fn staying(sandbox: &Sandbox, image: &Path) -> Child {
    let mut exec = sandbox.dvrun();
    exec.args(["exec", "--env", "PATH=/bin"]).arg(image);
    exec.args(["--", "sh", "-c", "echo ready; sleep 1000; true"]);
    let mut child = exec.stdout(ProcessStdio::piped()).spawn().expect("dvrun starts");
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a pipe");
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn kill_of_any_process_leaves_no_mount_and_no_loop_device_as_root() {
    if !ready_as_root() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.config("runtime: {image_access: kernel}\n");
    let packed = Packed::new(Fixture::complete(), ImageAccess::Kernel, &[ALL_ROOTS]);
    let mut victim = 0;
    loop {
        let mut child = staying(&sandbox, &packed.image());
        assert_eq!(devices(&packed.image()).len(), 1);
        let tree = descendants(child.id());
        // Ended well, once all have been killed.
        let (pid, signal) = match tree.get(victim) {
            Some(pid) => (*pid, Signal::SIGKILL),
            None => (child.id(), Signal::SIGTERM),
        };
        kill(Pid::from_raw(pid as i32), signal).unwrap();
        child.wait().unwrap();
        for pid in &tree {
            wait_until("all processes are gone", SOON, || !alive(*pid));
        }
        assert_nothing_is_left(&packed.image());
        if victim >= tree.len() {
            break;
        }
        victim += 1;
    }
    assert!(victim >= 3, "a monitor, a first process and a program at least: {victim}");
}

#[test]
fn many_at_once_find_a_device_each_as_root() {
    if !ready_as_root() {
        return;
    }
    let packed = Packed::new(Fixture::complete(), ImageAccess::Kernel, &[ALL_ROOTS]);
    let container = packed.shell("cat /data/file");
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_prints(&container, "of the image\n"));
        }
    });
    assert_nothing_is_left(&packed.image());
}

#[test]
fn auto_is_the_kernel_where_a_program_cannot_tell_as_root() {
    if !ready_as_root() {
        return;
    }
    let script = "echo ready; id -u; stat -c '%u %a' /closed; cat /closed/secret; cat /gate";
    let fixture = |gate: &Path| {
        let fixture = Fixture::complete();
        let closed = fixture.root().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("secret"), "read\n").unwrap();
        set_mode(&closed, 0o700);
        for path in [closed.join("secret"), closed] {
            chown(path, Some(1234), Some(1234)).unwrap();
        }
        fs::write(fixture.root().join(gate), "").unwrap();
        fixture
    };
    for (options, by_kernel) in [(&[ALL_ROOTS][..], true), (&[], false)] {
        let packed = Packed::new(fixture(Path::new("gate")), ImageAccess::Auto, options);
        let gate = packed.fixture.on_host("gate");
        nix::unistd::mkfifo(&gate, Mode::from_bits_truncate(0o600)).unwrap();
        let mut container = packed.shell(script);
        container.binds = vec![bind(&gate, "/gate")];
        let (mut out, mut err) = (capture(), capture());
        let mut running = start_with(&container, Default::default(), dvrun::runtime::Stream::Null, &out, &err).unwrap();
        assert_eq!(devices(&packed.image()).len(), usize::from(by_kernel), "{options:?}");
        // The first process, and a server where the kernel is none.
        assert_eq!(children(running.pid()).len(), if by_kernel { 1 } else { 2 }, "{options:?}");
        fs::write(&gate, "").unwrap();
        assert_eq!(running.wait().unwrap().status.code(), 0);
        assert_eq!(
            (text(&mut out).as_str(), text(&mut err).as_str()),
            ("ready\n0\n0 700\nread\n", ""),
            "{options:?}"
        );
        assert_nothing_is_left(&packed.image());
        if by_kernel {
            continue;
        }
        // Who insists sees the owners as they are: those of others are nobody's, and closed.
        let asked = Packed {
            access: ImageAccess::Kernel,
            ..packed
        };
        for user in [User::Caller, User::Root] {
            let mut container = asked.shell("stat -c '%u %a' /closed; cat /closed/secret 2>/dev/null || echo refused");
            container.user = user;
            assert_prints(&container, "65534 700\nrefused\n");
        }
    }
}

#[test]
fn what_an_image_brings_gives_no_rights_by_the_kernel_as_root() {
    if !ready_as_root() {
        return;
    }
    let fixture = Fixture::complete();
    let data = fixture.root().join("data");
    mknod(&data.join("zero"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 5)).unwrap();
    fs::copy("/bin/busybox", data.join("busybox")).unwrap();
    set_mode(&data.join("busybox"), 0o6755);
    let mut packed = Packed::new(fixture, ImageAccess::Kernel, &[ALL_ROOTS]);
    let script = "head -c 1 /data/zero >/dev/null && echo a device; busybox mount -o remount,rw / && echo writable; \
        touch /data/new && echo written; busybox umount /proc && echo unmounted; ls /proc/fs | busybox grep -c '^bin$'; \
        /data/busybox grep -E '^(CapEff|NoNewPrivs)' /proc/self/status";
    for user in [User::Caller, User::Image("1000:1000".into())] {
        let mut container = packed.shell(script);
        container.user = user;
        let done = run(&container);
        assert_eq!(done.out, "0\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n", "{}", done.err);
    }
    // A writable layer lies over it, as over every other, and the next container finds the image as it was.
    let mut container = packed.shell("echo more >>/data/file; rm /data/zero; chmod 700 /data/file; cat /data/file; ls /data");
    container.writable = Writable::Tmpfs;
    if overlays() {
        assert_prints(&container, "of the image\nmore\nbusybox\nfile\n");
    }
    assert_prints(&packed.shell("cat /data/file"), "of the image\n");
    // One that lacks mount points has others laid over it.
    packed = Packed::new(Fixture::new(), ImageAccess::Kernel, &[ALL_ROOTS]);
    assert_prints(&packed.shell("cat /data/file; echo x >/tmp/x; cat /tmp/x"), "of the image\nx\n");
    assert_nothing_is_left(&packed.image());
}

#[test]
fn an_image_may_lie_anywhere_in_its_file_as_root() {
    if !ready_as_root() {
        return;
    }
    let packed = Packed::new(Fixture::complete(), ImageAccess::Kernel, &[ALL_ROOTS]);
    let image = fs::read(packed.image()).unwrap();
    for begins in [100_u64, 4096, 5000] {
        let path = packed.fixture.folder.path().join(format!("at-{begins}"));
        fs::write(&path, [&vec![b'x'; begins as usize][..], &image, b"a signature"].concat()).unwrap();
        let mut container = packed.shell("cat /data/file");
        let Root::Squashfs { file, offset, .. } = &mut container.root else {
            panic!("it was packed");
        };
        (*file, *offset) = (path.clone(), begins);
        assert_prints(&container, "of the image\n");
        assert_nothing_is_left(&path);
    }
}

#[test]
fn what_the_kernel_refuses_is_said_or_left_to_our_server_as_root() {
    if !ready_as_root() {
        return;
    }
    let mut packed = Packed::new(Fixture::complete(), ImageAccess::Kernel, &[ALL_ROOTS]);
    // As `mksquashfs -nopad` leaves it: the superblock says how long it is (squashfs_fs.h, `bytes_used`).
    let whole = fs::read(packed.image()).unwrap();
    let used = u64::from_le_bytes(whole[40..48].try_into().unwrap()) as usize;
    assert_ne!(used % 512, 0, "this image fills its last sector: change it a little");
    fs::write(packed.image(), &whole[..used]).unwrap();
    let unpadded = refused(&packed.shell("true"));
    let is_last_sector = |error: &RuntimeError| {
        matches!(
            error,
            RuntimeError::KernelMount {
                source: NoKernelMount::LastSector,
                ..
            }
        )
    };
    assert!(is_last_sector(&unpadded), "{unpadded:?}");
    packed.access = ImageAccess::Auto;
    assert_prints(&packed.shell("cat /data/file"), "of the image\n");
    // A root at a place that no block of metadata has.
    let mut damaged = whole;
    damaged[32..40].copy_from_slice(&0xffff_u64.to_le_bytes());
    fs::write(packed.image(), &damaged).unwrap();
    packed.access = ImageAccess::Kernel;
    let error = refused(&packed.shell("true"));
    let RuntimeError::KernelMount {
        source: NoKernelMount::Refused { said, .. },
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert!(said.contains("squashfs"), "the kernel says why: {said}");
    assert!(error.hint().is_some_and(|hint| hint.contains("image_access: auto")));
    assert_nothing_is_left(&packed.image());
}

#[test]
fn without_loop_devices_auto_is_our_server_as_root() {
    if !ready_as_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let packed = Packed::new(Fixture::complete(), ImageAccess::Kernel, &[ALL_ROOTS]);
    let hidden = |access: &str, words: &[&str]| {
        sandbox.config(&format!("runtime: {{image_access: {access}}}\n"));
        let dvrun = sandbox.dvrun();
        let mut command = Command::new("unshare");
        let script = "mount --make-rprivate / && mount --bind /dev/full /dev/loop-control && PATH=/nonexistent exec \"$@\"";
        command.args(["-m", "sh", "-c", script, "sh"]).arg(dvrun.get_program());
        command.args(dvrun.get_args()).args(words).env_clear();
        finish(
            command
                .envs(dvrun.get_envs().filter_map(|(name, value)| Some((name, value?))))
                .current_dir(sandbox.work()),
        )
    };
    let image = packed.image();
    let image = image.to_str().expect("the test chose it");
    let exec = ["exec", image, "--", "/bin/cat", "/data/file"];
    let done = hidden("auto", &exec).ok();
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("of the image\n", ""));
    hidden("kernel", &exec)
        .exits(3)
        .complains("there is no loop device to be had")
        .complains("image_access: auto");
    hidden("auto", &["doctor"]).says("(fuse)").says("there is no loop device to be had");
    hidden("kernel", &["doctor"])
        .exits(1)
        .says("FAIL  image files")
        .says("there is no loop device to be had");
    sandbox.config("runtime: {image_access: kernel}\n");
    finish(&mut doctor(&sandbox)).says("(kernel)");
    sandbox.config("{}\n");
    finish(&mut doctor(&sandbox)).says("(kernel)").says("loop devices are there");
}

/// A doctor that looks for no cluster.
fn doctor(sandbox: &Sandbox) -> Command {
    let mut doctor = sandbox.dvrun();
    doctor.arg("doctor").env("PATH", sandbox.work());
    doctor
}

/// An ordinary user, and one who is root of a user namespace of its own.
#[test]
fn whoever_may_not_mount_is_told_so() {
    if !ready() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.config("runtime: {image_access: kernel}\n");
    let image = crate::support::checkout().join("tests/corpora/apptainer-1.4.5.sif");
    let mut exec = sandbox.dvrun();
    exec.arg("exec").arg(&image).args(["--", "true"]);
    let told = finish(&mut exec).exits(3).complains("cannot be mounted by the kernel");
    told.complains("it takes CAP_SYS_ADMIN")
        .complains("hint: set `runtime.image_access: auto`");
    let mut inside = Command::new("unshare");
    inside
        .args(["--user", "--map-root-user"])
        .arg(exec.get_program())
        .args(exec.get_args())
        .env_clear();
    inside.envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finish(&mut inside).exits(3).complains("this process is in a user namespace");
    finish(&mut doctor(&sandbox))
        .exits(1)
        .says("FAIL  image files")
        .says("it takes CAP_SYS_ADMIN")
        .says("→ set `runtime.image_access: auto`");
    sandbox.config("runtime: {image_access: best}\n");
    finish(&mut doctor(&sandbox)).exits(2).complains("kernel");
    sandbox.config("{}\n");
    finish(&mut doctor(&sandbox)).says("the kernel's own mount cannot be had: it takes CAP_SYS_ADMIN");
}
