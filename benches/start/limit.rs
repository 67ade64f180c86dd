//! The least that a container takes on this machine: the same namespaces, a first process, `/dev`, `/proc` and `/tmp`, made without
//! a look at anything and without what confines a program.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, getgid, getuid, pivot_root};

/// The argument by which the benchmark's binary is such a container, of the folder that follows.
pub const ARGUMENT: &str = "--limit";

/// Runs `program` of the folder `root`, as an ordinary user.
pub fn run(root: &Path, program: &str) -> io::Result<ExitCode> {
    let (uid, gid) = (getuid(), getgid());
    let namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is a fork, of a process with one thread.
    let first = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) })?;
    if first != 0 {
        return match waitpid(Pid::from_raw(first as libc::pid_t), None)? {
            WaitStatus::Exited(_, 0) => Ok(ExitCode::SUCCESS),
            other => Err(io::Error::other(format!("{other:?}"))),
        };
    }
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    enter(root)?;
    let ended = Command::new(program).status()?;
    std::process::exit(i32::from(!ended.success()));
}

fn enter(root: &Path) -> io::Result<()> {
    let place = Path::new("/tmp");
    let none = None::<&str>;
    let confined = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let bind = |source: &Path, target: &Path| mount(Some(source), target, none, MsFlags::MS_BIND, none);
    let folder = |target: &Path| -> io::Result<()> {
        let memory = place.join("memory").join(target.file_name().unwrap_or_default());
        fs::create_dir(&memory)?;
        Ok(bind(&memory, target)?)
    };
    // What is to be bound lies below the folder that is covered now.
    chdir(root)?;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
    mount(Some("tmpfs"), place, Some("tmpfs"), confined, none)?;
    let inside = place.join("root");
    fs::create_dir(&inside)?;
    fs::create_dir(place.join("memory"))?;
    bind(Path::new("."), &inside)?;
    mount(
        none,
        &inside,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | confined,
        none,
    )?;
    let dev = inside.join("dev");
    folder(&dev)?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        fs::write(dev.join(name), "")?;
        bind(&Path::new("/dev").join(name), &dev.join(name))?;
    }
    fs::create_dir(dev.join("pts"))?;
    let options = Some("newinstance,ptmxmode=0666,mode=620");
    mount(
        Some("devpts"),
        &dev.join("pts"),
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        options,
    )?;
    symlink("pts/ptmx", dev.join("ptmx"))?;
    fs::create_dir(dev.join("shm"))?;
    folder(&dev.join("shm"))?;
    mount(
        Some("proc"),
        &inside.join("proc"),
        Some("proc"),
        confined | MsFlags::MS_NOEXEC,
        none,
    )?;
    let sys = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some("/sys"), &inside.join("sys"), none, sys, none)?;
    folder(&inside.join("tmp"))?;
    chdir(&inside)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}
