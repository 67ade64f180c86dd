//! What a contained program must not be able to do.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use dvrun::runtime::{Container, Kernel, RuntimeError, User};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::fixture::*;
use crate::support::{as_root, finish, lane};

/// As the caller and as root inside.
fn both(container: Container) -> [Container; 2] {
    let root = Container {
        user: User::Root,
        ..container.clone()
    };
    [container, root]
}

/// Asserts that each command fails, and that none of them says anything on stdout.
#[track_caller]
fn assert_all_fail(container: &Container, commands: &[&str]) {
    for container in both(container.clone()) {
        for command in commands {
            let mut container = container.clone();
            container.argv[2] = (*command).to_owned();
            let done = run(&container);
            assert!(
                done.code != 0 && done.out.is_empty(),
                "`{command}` ({:?}): {done:?}",
                container.user
            );
            assert!(!done.err.contains("not found"), "`{command}`: {}", done.err);
        }
    }
}

#[test]
fn other_users_files_stay_theirs() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let mut container = fixture.shell("");
    container.binds = vec![bind("/etc", "/host-etc")];
    assert_all_fail(
        &container,
        &[
            "cat /host-etc/shadow",
            "echo x >> /host-etc/passwd",
            "chmod 666 /host-etc/passwd",
            "chown 0:0 /host-etc/hostname",
            "touch /host-etc/x",
            "mv /host-etc/passwd /host-etc/passwd.old",
        ],
    );
    container.binds = vec![bind("/root", "/host-root")];
    assert!(matches!(refused(&container), RuntimeError::BindSource { source, .. } if source.0 == libc::EACCES));
}

#[test]
fn no_capability_is_left_and_none_can_be_had_again() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let none = "0000000000000000";
    // chown, dac_override, fowner, fsetid, setgid, setuid: in the container's user namespace.
    let few = "00000000000000db";
    let script =
        "while read -r name value; do case $name in Cap*|NoNewPrivs:) echo $name $value;; esac; done < /proc/self/status; ulimit -c";
    for (container, held) in both(fixture.shell(script)).iter().zip([none, few]) {
        assert_prints(
            container,
            &format!("CapInh: {none}\nCapPrm: {held}\nCapEff: {held}\nCapBnd: {held}\nCapAmb: {none}\nNoNewPrivs: 1\n0\n"),
        );
    }
    assert_all_fail(
        &fixture.shell(""),
        &[
            "unshare -U true",
            "unshare -r true",
            "unshare -m true",
            "unshare -p true",
            "mount -t tmpfs none /tmp",
            "mount -t proc none /proc",
            "mount -o bind / /tmp",
            "mount -o remount,rw /",
            "mount -o remount,rw,bind /proc/sys",
            "umount /proc",
            "umount -l /tmp",
            "mknod /tmp/disk b 8 0",
            "hostname other",
            "chmod 4755 /bin/busybox",
            "echo 100 > /proc/sys/user/max_user_namespaces",
        ],
    );
}

/// With `LD_SHOW_AUXV` the loader shows what the kernel told it; but not in a program that runs with more rights than its caller.
#[test]
fn setuid_programs_gain_nothing() {
    let su = Path::new("/usr/bin/su");
    let setuid = |meta: fs::Metadata| meta.uid() == 0 && meta.mode() & 0o4000 != 0;
    if !ready() || !lane("/usr/bin/su, setuid and root's", fs::metadata(su).is_ok_and(setuid)) {
        return;
    }
    if !nix::sys::prctl::get_no_new_privs().unwrap() {
        let outside = finish(Command::new(su).arg("--version").env("LD_SHOW_AUXV", "1")).ok().stdout;
        assert!(!outside.contains("AT_SECURE"), "{outside}");
    }
    let fixture = Fixture::new();
    for mut container in both(fixture.container(&["/usr/bin/su", "--version"])) {
        let libraries = ["/usr", "/lib", "/lib64"].into_iter().filter(|folder| Path::new(folder).exists());
        container.binds = libraries.map(|folder| bind_read_only(folder, folder)).collect();
        container.env.push(("LD_SHOW_AUXV".into(), "1".into()));
        let done = run(&container);
        let told = |name: &str| {
            let line = done.out.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name}: {done:?}")).trim().to_owned()
        };
        assert_eq!((done.code, told("AT_SECURE").as_str()), (0, "0"), "{done:?}");
        assert_eq!(told("AT_EUID"), told("AT_UID"), "{done:?}");
    }
}

#[test]
fn no_mount_honours_setuid_programs_or_devices() {
    if !ready() {
        return;
    }
    for fixture in [Fixture::new(), Fixture::complete()] {
        for overlay in [true, false] {
            for mount_attributes in [true, false] {
                let mut container = fixture.container(&["cat", "/proc/self/mountinfo"]);
                container.binds = vec![bind(fixture.host(), "/new"), bind_read_only("/etc", "/data")];
                let done = run_with(
                    &container,
                    Kernel {
                        overlay,
                        mount_attributes,
                        pivot_root: overlay,
                    },
                );
                assert!(done.out.lines().count() > 15, "{done:?}");
                for line in done.out.lines() {
                    let fields: Vec<&str> = line.split(' ').collect();
                    let (point, options) = (fields[4], fields[5]);
                    let device = point.starts_with("/dev/") && point != "/dev/shm";
                    assert!(options.contains("nosuid"), "{line}");
                    assert!(options.contains("nodev") || device, "{line}");
                }
            }
        }
    }
}

#[test]
fn the_host_cannot_be_reached_through_proc() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let secret = fixture.on_host("secret");
    fs::write(&secret, "secret").unwrap();
    let secret = secret.display();
    symlink("/proc/1/root", fixture.root().join("escape")).unwrap();
    let commands = [
        format!("cat {secret}"),
        format!("cat /proc/1/root{secret}"),
        format!("cat /proc/1/cwd{secret}"),
        format!("cat /escape{secret}"),
        format!("cat /proc/self/root{secret}"),
        format!("cat ../../../../..{secret}"),
        "cat /proc/1/exe".to_owned(),
        "echo x > /proc/1/exe".to_owned(),
        "ls /proc/1/fd".to_owned(),
        "cat /proc/1/environ".to_owned(),
        "cat /proc/1/maps".to_owned(),
        "head -c 1 /proc/1/mem".to_owned(),
        "ls /proc/1/map_files/".to_owned(),
        "ls -d /.old* /old* /mnt/old*".to_owned(),
        format!("kill -0 {}", std::process::id()),
        format!("ls /proc/{}", std::process::id()),
    ];
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    assert_all_fail(&fixture.shell(""), &commands);
    // Nor where the host's root could only be covered.
    let covered = Kernel {
        pivot_root: false,
        ..Kernel::default()
    };
    let done = run_with(&fixture.shell(&commands.join("; ")), covered);
    assert!(done.out.is_empty(), "{}", done.out);
    let mounts = run_with(&fixture.shell("cat /proc/self/mountinfo; exec chroot / true"), covered);
    assert!(mounts.out.lines().count() > 15 && mounts.code != 0, "{mounts:?}");
    assert_eq!(mounts.out.lines().filter(|line| line.contains("/.. ")).count(), 0);
}

/// Says which of the parts of `/proc` that are about the host can be written to, and which of its secrets can be read.
const OPEN_THE_HOSTS: &str = "\
    for file in /proc/sysrq-trigger /proc/irq/*/smp_affinity /proc/irq/default_smp_affinity /proc/bus/*/* /proc/bus/pci/*/* /proc/fs/*/* \
        /proc/sys/kernel/core_pattern /proc/sys/kernel/shmmax /proc/sys/kernel/hostname /proc/sys/user/max_user_namespaces; do \
        if [ -f $file ] && (: >>$file) 2>/dev/null; then echo $file is open; fi; \
    done; \
    for file in kcore keys timer_list sched_debug latency_stats; do head -c 1 /proc/$file 2>/dev/null; done";

#[track_caller]
fn assert_the_hosts_proc_is_closed() {
    let fixture = Fixture::new();
    for user in [User::Caller, User::Root, User::Image("1000:1000".into())] {
        let mut container = fixture.shell(OPEN_THE_HOSTS);
        container.user = user;
        assert_eq!(run(&container).out, "", "{:?}", container.user);
    }
}

#[test]
fn what_is_the_hosts_in_proc_is_closed() {
    if ready() {
        assert_the_hosts_proc_is_closed();
    }
}

#[test]
fn what_is_the_hosts_in_proc_is_closed_as_root() {
    if as_root() && lane("busybox-static", Path::new("/bin/busybox").exists()) {
        assert_the_hosts_proc_is_closed();
    }
}

#[test]
fn only_its_own_processes_can_be_seen() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    assert_prints(&fixture.shell("set -- /proc/[0-9]*; echo $#"), "2\n");
    // To all that may be signalled: no one outside is among them.
    let done = run(&fixture.shell("trap '' TERM; kill -TERM -1; kill -KILL 1; echo alive; kill -KILL 0"));
    assert_eq!((done.code, done.out.as_str()), (137, "alive\n"));
}

#[test]
fn no_descriptor_of_the_caller_leaks() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let leaky = File::open(fixture.host()).unwrap();
    fcntl(leaky.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    // The third is the one that lists.
    assert_prints(&fixture.container(&["ls", "/proc/self/fd"]), "0\n1\n2\n3\n");
    drop(leaky);
}

#[test]
fn nothing_of_the_callers_environment_or_umask_is_lost_or_leaked() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let mut container = fixture.shell("umask; touch /new/file; stat -c %a /new/file");
    container.binds = vec![bind(fixture.host(), "/new")];
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::sys::stat::umask(before);
    assert_prints(&container, &format!("{:04o}\n{:o}\n", before.bits(), 0o666 & !before.bits()));
}

/// Set for the test that runs itself again in a container.
const PROBE: &str = "DVRUN_TEST_PROBE";

#[test]
fn system_calls_without_a_place_in_a_job_are_refused() {
    if std::env::var_os(PROBE).is_some() {
        return probe();
    }
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    // This very program, which is static.
    let name = "runtime::confinement::system_calls_without_a_place_in_a_job_are_refused";
    for mut container in both(fixture.container(&["/probe", "--exact", name, "--nocapture"])) {
        container.binds = vec![bind_read_only(std::env::current_exe().unwrap(), "/probe")];
        container.env.push((PROBE.into(), "1".into()));
        let done = run(&container);
        assert_eq!(done.code, 0, "{done:?}");
        let answers: Vec<&str> = done.out.lines().filter_map(|line| line.strip_prefix("call ")).collect();
        assert!(answers.len() > 12, "{done:?}");
        for answer in answers {
            let (call, errno) = answer.split_once(' ').unwrap();
            let expected = match call {
                "clone3" => libc::ENOSYS,
                "ptrace" | "process_vm_readv" | "thread" => 0,
                _ => libc::EPERM,
            };
            assert_eq!(errno, expected.to_string(), "{call} ({:?})", container.user);
        }
    }
}

/// Says how the kernel answers.
fn probe() {
    let tell = |name: &str, number: i64, arguments: [usize; 4]| {
        let [a, b, c, d] = arguments;
        // SAFETY: what is asked for is refused, or touches nothing but the memory that is given.
        let result = unsafe { libc::syscall(number, a, b, c, d, 0, 0) };
        println!("call {name} {}", if result < 0 { nix::errno::Errno::last_raw() } else { 0 });
    };
    for (name, number) in [
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("open_tree", libc::SYS_open_tree),
        ("fsopen", libc::SYS_fsopen),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("bpf", libc::SYS_bpf),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("kexec_load", libc::SYS_kexec_load),
        ("finit_module", libc::SYS_finit_module),
        ("setns", libc::SYS_setns),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("syslog", libc::SYS_syslog),
    ] {
        tell(name, number, [0; 4]);
    }
    tell("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0, 0, 0]);
    tell(
        "clone",
        libc::SYS_clone,
        [libc::CLONE_NEWUSER as usize | libc::SIGCHLD as usize, 0, 0, 0],
    );
    tell("clone3", libc::SYS_clone3, [0; 4]);
    tell("ioctl", libc::SYS_ioctl, [0, libc::TIOCSTI as usize, c"x".as_ptr() as usize, 0]);
    // What debuggers and MPI need.
    let (from, mut to) = ([7u8; 8], [0u8; 8]);
    let (local, remote) = (
        std::io::IoSliceMut::new(&mut to),
        nix::sys::uio::RemoteIoVec {
            base: from.as_ptr() as usize,
            len: 8,
        },
    );
    let read = nix::sys::uio::process_vm_readv(nix::unistd::Pid::this(), &mut [local], &[remote]);
    println!(
        "call process_vm_readv {}",
        read.map_or_else(|errno| errno as i32, |_| i32::from(to != from))
    );
    println!("call thread {}", i32::from(std::thread::spawn(|| ()).join().is_err()));
    #[cfg(target_arch = "x86_64")]
    {
        let (mut result, keyctl): (i64, i64) = (0, 288);
        // SAFETY: keyctl(0, …) by its number for 32-bit programs, which touches no memory.
        unsafe {
            std::arch::asm!("push rbx", "xor ebx, ebx", "int 0x80", "pop rbx", inlateout("rax") keyctl => result,
                in("rcx") 0, in("rdx") 0, in("rsi") 0, in("rdi") 0);
        }
        println!("call keyctl-of-32-bit-programs {}", -(result as i32));
    }
    tell("ptrace", libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0]);
}
