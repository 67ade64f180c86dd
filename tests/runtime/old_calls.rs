//! Kernels that lack what newer ones have: Red Hat's 4.18, whose clusters are many, has no system call from `pidfd_send_signal` on.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::fixture::ready;
use crate::support::finish;

/// Of that call, and of all that came after it, on every architecture: `openat2`, `clone3`, `close_range`, `open_tree`,
/// `move_mount`, `mount_setattr`, `pidfd_open`, `faccessat2`, `fsopen` and others.
const FIRST: u32 = 424;

/// The tests that hold where these calls are not there, as everywhere else.
const ALL: [&str; 8] = [
    "runtime::binds::",
    "runtime::roots::",
    "runtime::programs::",
    "runtime::terminals::",
    "runtime::image_files::what_is_no_image",
    "runtime::image_files::the_whole_tree",
    "runtime::image_files::a_writable_root",
    "runtime::confinement::",
];

/// Has the kernel answer ENOSYS to this thread, and all that it executes, as an older one would.
fn forget_calls() -> nix::Result<()> {
    const NUMBER: u32 = 0;
    let step = |code: u32, yes: u8, no: u8, value: u32| libc::sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k: value,
    };
    let program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NUMBER),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, FIRST),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: the structure and the instructions that it points to are alive during the call, which only reads them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    nix::errno::Errno::result(done).map(drop)
}

/// This binary.
fn tests(names: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this binary"));
    command.args(names).arg("--test-threads=2");
    // SAFETY: after the fork there are system calls alone, and no allocation.
    unsafe { command.pre_exec(|| forget_calls().map_err(Into::into)) };
    command
}

#[test]
fn containers_are_the_same_where_no_call_is_newer_than_linux_4_18() {
    if !ready() {
        return;
    }
    let probe = "runtime::old_calls::probe";
    finish(tests(&[probe, "--exact", "--nocapture"]).env(PROBE, "1"))
        .ok()
        .says("openat2: ENOSYS");
    finish(&mut tests(&ALL)).ok().says(" 0 failed");
}

const PROBE: &str = "DVRUN_TEST_OLD_CALLS";

/// Says that the filter is in force; called by the test above.
#[test]
fn probe() {
    if std::env::var_os(PROBE).is_some() {
        let beneath = rustix::fs::ResolveFlags::BENEATH;
        let answer = rustix::fs::openat2(rustix::fs::CWD, ".", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty(), beneath);
        let name = answer.map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error()));
        println!("openat2: {:?}", name.expect_err("it is not there"));
    }
}
