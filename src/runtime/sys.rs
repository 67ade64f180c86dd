//! The system calls that have no safe wrapper elsewhere, each as one small safe function: the only unsafe code of the
//! runtime.

use std::ffi::CString;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::exit::Status;

type Result<T> = nix::Result<T>;

/// Whether a file that is open for writing alone is open nowhere else: a copy of the descriptor, here or in a child, does not
/// count. `false` as well where the file system cannot tell, as those of networks.
pub fn is_open_here_alone(file: &std::fs::File) -> bool {
    /// `asm-generic/fcntl.h`
    const F_SETSIG: libc::c_int = 10;
    let fd = file.as_raw_fd();
    // A lease to write is given to whoever is alone (fcntl(2)), and given back at once. Somebody who opens the file in this
    // moment waits, and has a signal sent, which is to be one that nobody minds.
    // SAFETY: plain numbers.
    unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGURG) == 0
            && libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) == 0
            && libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// Which side of a fork this is.
pub enum Side {
    Parent(Pid),
    Child,
}

/// Takes over a descriptor that this process was started with.
pub fn inherited(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_GETFD touches no memory and tells whether the number is an open descriptor.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and at this point of a fresh process nothing else of it can own it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy of a descriptor by its number.
pub fn copy_of(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC touches no memory, and fails where the number is no open descriptor.
    let copy = Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel just made it, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Has a descriptor outlive exec.
pub fn keep_on_exec(fd: RawFd) -> Result<()> {
    // SAFETY: F_SETFD touches no memory.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
}

/// Which processes a container's know by their numbers, and whose System V objects and message queues they see.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// The container's alone.
    Own,
    /// All of the host's.
    Hosts,
}

/// Forks into new user, mount and UTS namespaces, and new PID and IPC ones for a company of its own. The caller must have
/// one thread.
pub fn fork_into_namespaces(company: Company) -> Result<Side> {
    let company = match company {
        Company::Own => libc::CLONE_NEWPID | libc::CLONE_NEWIPC,
        Company::Hosts => 0,
    };
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | company | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with no stack given this is a fork; the process has one thread, so that no lock is
    // held by a thread that the child lacks. The four other arguments are unused by these flags, in any order.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0usize, 0usize, 0usize, 0usize) };
    side(pid as libc::c_long)
}

/// Whether this process has one thread, so that it may fork and go on as it likes. `false` where it cannot be told.
pub fn has_one_thread() -> bool {
    // Links of a folder: from above, its own `.`, and one from each folder in it, of which there is one a thread.
    std::fs::metadata("/proc/self/task").is_ok_and(|threads| threads.nlink() == 3)
}

/// Forks. The caller must have one thread.
pub fn fork() -> Result<Side> {
    // SAFETY: the process has one thread, so that the child may call anything.
    side(libc::c_long::from(unsafe { libc::fork() }))
}

fn side(pid: libc::c_long) -> Result<Side> {
    match Errno::result(pid)? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(Pid::from_raw(pid as libc::pid_t))),
    }
}

/// Whether a mount's attributes reach those mounted below it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    One,
    All,
}

/// Sets `MOUNT_ATTR_*` on the mount at `fd`. ENOSYS before Linux 5.12.
pub fn set_mount_attributes(fd: impl AsFd, attributes: u64, depth: Depth) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if depth == Depth::All { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty C string, and a structure of the size that is given with it, both alive during the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// What becomes of descriptors.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Closed,
    ClosedOnExec,
}

/// Closes, now or at exec, every descriptor from `first` on. The caller must own none of them any more (`Closed`).
pub fn close_from(first: RawFd, fate: Fate) -> Result<()> {
    let flags = match fate {
        Fate::Closed => 0,
        Fate::ClosedOnExec => libc::CLOSE_RANGE_CLOEXEC as libc::c_int,
    };
    // SAFETY: no memory is passed; the function's contract keeps owned descriptors out.
    match Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) }) {
        Ok(_) => return Ok(()),
        // Linux before 5.9; before 5.11 for the flag.
        Err(Errno::ENOSYS | Errno::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    let open = std::fs::read_dir("/proc/self/fd").map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let numbers: Vec<RawFd> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd| fd >= first)
        .collect();
    for fd in numbers {
        // SAFETY: as above. The folder's own descriptor is closed by now: EBADF is of no interest.
        unsafe {
            match fate {
                Fate::Closed => libc::close(fd),
                Fate::ClosedOnExec => libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC),
            };
        }
    }
    Ok(())
}

/// Leaves this process, and all that it will execute, no capabilities but those of `keep` (bit n is capability n).
pub fn drop_capabilities(keep: u64) -> Result<()> {
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: prctl with plain numbers.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) }) {
            Ok(_) => {}
            // Past the last capability that this kernel knows.
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    // SAFETY: as above.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0, 0, 0) })?;

    let word = |bits: u64| Capabilities {
        effective: bits as u32,
        permitted: bits as u32,
        inheritable: 0,
    };
    let data = [word(keep & 0xffff_ffff), word(keep >> 32)];
    let header = CAPABILITIES;
    // SAFETY: both structures are laid out as capset(2) says and alive during the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The capabilities that count for this thread now (bit n is capability n).
pub fn effective_capabilities() -> Result<u64> {
    let mut data = [Capabilities::default(); 2];
    // The kernel would write the version that it prefers.
    let mut header = CAPABILITIES;
    // SAFETY: both structures are laid out as capget(2) says and alive during the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].effective) | u64::from(data[1].effective) << 32)
}

/// `__user_cap_header_struct`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilitiesOf {
    version: u32,
    pid: libc::c_int,
}

/// Of this thread, in two words of 32 (`_LINUX_CAPABILITY_VERSION_3`).
const CAPABILITIES: CapabilitiesOf = CapabilitiesOf {
    version: 0x2008_0522,
    pid: 0,
};

/// `__user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Requests of `include/uapi/linux/loop.h`, and its flags for a device that is read-only and frees itself.
const LOOP_SET_FD: libc::c_ulong = 0x4C00;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_SET_STATUS64: libc::c_ulong = 0x4C04;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_FLAGS: u32 = 1 | 4;

/// `loop_info64`.
#[repr(C)]
struct LoopInfo {
    unused: [u64; 3],
    offset: u64,
    size_limit: u64,
    number_and_encryption: [u32; 3],
    flags: u32,
    names_and_key: [u8; 160],
    init: [u64; 2],
}

/// `loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The number of a loop device that nobody uses at this moment; `control` is `/dev/loop-control`.
pub fn free_loop_device(control: impl AsFd) -> Result<u32> {
    // SAFETY: no memory is passed.
    let number = Errno::result(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE as _) })?;
    u32::try_from(number).map_err(|_| Errno::ENODEV)
}

/// Has a loop device show `file` from byte `offset` on, read-only, until nothing uses it any more. EBUSY when it is in use.
pub fn show_on_loop_device(device: impl AsFd, file: impl AsFd, offset: u64) -> Result<()> {
    let (device, file) = (device.as_fd().as_raw_fd(), file.as_fd().as_raw_fd());
    let config = LoopConfig {
        fd: file as u32,
        block_size: 0,
        info: LoopInfo {
            unused: [0; 3],
            offset,
            size_limit: 0,
            number_and_encryption: [0; 3],
            flags: LOOP_FLAGS,
            names_and_key: [0; 160],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: a structure laid out as loop.h says, alive during the call, which only reads it.
    match Errno::result(unsafe { libc::ioctl(device, LOOP_CONFIGURE as _, &raw const config) }) {
        // Linux before 5.8 does not know it.
        Err(Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS) => {}
        done => return done.map(drop),
    }
    // SAFETY: the argument is a plain number.
    Errno::result(unsafe { libc::ioctl(device, LOOP_SET_FD as _, file) })?;
    // SAFETY: as for the first request.
    let shown = Errno::result(unsafe { libc::ioctl(device, LOOP_SET_STATUS64 as _, &raw const config.info) });
    if shown.is_err() {
        // SAFETY: the argument is a plain number. What it says is of no interest besides.
        unsafe { libc::ioctl(device, LOOP_CLR_FD as _, 0) };
    }
    shown.map(drop)
}

/// Installs a seccomp filter for this thread and all that it will execute.
///
/// Without the mitigation of speculative store bypass that some kernels before 5.16 tie to filters: it slows programs down,
/// and protects a program from what it itself interprets.
pub fn filter_system_calls(program: &[libc::sock_filter]) -> Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    let install = |flags: libc::c_ulong| {
        // SAFETY: the structure and the instructions that it points to are alive during the call, which only reads them.
        Errno::result(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }).map(drop)
    };
    match install(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) {
        // Linux before 4.17 does not know the flag.
        Err(Errno::EINVAL) => install(0),
        done => done,
    }
}

/// A session keyring of its own, so that keys of the caller's session are out of reach.
pub fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) }).map(drop)
}

/// Makes the terminal at `fd` the controlling one of this session, whose leader the caller must be.
pub fn control_terminal(fd: impl AsFd) -> Result<()> {
    // SAFETY: the argument is a plain number.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// The size of the terminal at `fd`, in characters: rows, columns.
pub fn window_size(fd: impl AsFd) -> Result<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure that the request fills, alive during the call.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

/// Gives the terminal at `fd` a size; its foreground process group gets SIGWINCH when it is another.
pub fn set_window_size(fd: impl AsFd, (rows, columns): (u16, u16)) -> Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure that the request reads, alive during the call.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Every signal's disposition back to the default: dispositions that are "ignore" survive exec.
pub fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is no handler. SIGKILL, SIGSTOP and the C library's own signals refuse, rightly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// `argv` or `envp` of `execve`, made ready where memory may still be allocated.
pub struct Words<'a> {
    /// Ends with a null pointer.
    pointers: Vec<*const libc::c_char>,
    words: PhantomData<&'a CString>,
}

impl<'a> Words<'a> {
    pub fn new(words: &'a [CString]) -> Words<'a> {
        let pointers = words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
        Words {
            pointers,
            words: PhantomData,
        }
    }
}

/// `execve`, without an allocation; returns only to say why not.
pub fn execute_words(program: &CString, argv: &Words, env: &Words) -> Errno {
    // SAFETY: both lists end with a null pointer and point to C strings that they borrow.
    unsafe { libc::execve(program.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    Errno::last()
}

/// Whether a path leads somewhere, without an allocation.
pub fn is_there(path: &CString) -> bool {
    // SAFETY: a C string, alive during the call.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

/// `dup2` onto a number that nobody owns: one of a standard stream, in a child.
pub fn duplicate_to(fd: RawFd, number: RawFd) -> Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::dup2(fd, number) }).map(drop)
}

/// Has a child execute a program, as `vfork` would: the child runs `become_it` in the caller's memory, on a stack of its own, while
/// the calling thread stands still. `become_it` replaces the child by a program, or returns why it could not.
///
/// `become_it` makes system calls alone: it must neither allocate nor take a lock. The caller blocks all signals.
///
/// # Errors
/// What `become_it` returned, and that of `clone`.
pub fn spawn_sharing_memory(become_it: &mut dyn FnMut() -> Errno) -> Result<Pid> {
    const STACK: usize = 64 << 10;
    /// What both sides see.
    struct Child<'a> {
        become_it: &'a mut dyn FnMut() -> Errno,
        failed: Option<Errno>,
    }
    extern "C" fn begin(child: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the parent passes it, and waits.
        let child = unsafe { &mut *child.cast::<Child<'_>>() };
        child.failed = Some((child.become_it)());
        // Not `exit`: what the parent has registered for its own end is not the child's to do.
        exit_now(127)
    }
    let mut child = Child { become_it, failed: None };
    // Nothing is written to what the child does not use.
    let mut stack: Vec<MaybeUninit<u8>> = Vec::with_capacity(STACK);
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: CLONE_VFORK keeps this thread from running until the child has executed a program or ended, so that what it borrows
    // and its stack live as long as it does; that it allocates nothing is the function's contract. The stack grows down from its
    // top, which `clone` aligns.
    let pid = unsafe { libc::clone(begin, top.cast(), flags, (&raw mut child).cast()) };
    let pid = Pid::from_raw(Errno::result(pid)?);
    match child.failed {
        None => Ok(pid),
        Some(errno) => {
            wait_for_usage(pid)?;
            Err(errno)
        }
    }
}

/// Waits for the child `pid`. Gives how it ended, its user and system time in microseconds and its peak resident memory in
/// bytes, in both of which its own children count that it waited for.
pub fn wait_for_usage(pid: Pid) -> Result<(Status, u64, u64)> {
    let mut status = 0;
    // SAFETY: a structure of numbers, for which zeros are good.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both places are alive during the call.
        match Errno::result(unsafe { libc::wait4(pid.as_raw(), &raw mut status, 0, &raw mut used) }) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let status = match libc::WIFSIGNALED(status) {
        true => Status::Signaled(libc::WTERMSIG(status)),
        false => Status::Exited(libc::WEXITSTATUS(status)),
    };
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Ok((status, micros(used.ru_utime) + micros(used.ru_stime), used.ru_maxrss as u64 * 1024))
}

/// Has the allocator take memory in large pieces and keep what is freed. By default a buffer of the size of an image's blocks goes
/// back to the kernel, and the next one costs a page fault for every 4 KiB. Here all come from one heap, of huge pages where the
/// kernel gives them to who asks. The caller must have one thread.
#[cfg(target_env = "gnu")]
pub fn take_memory_in_large_pieces() {
    const LARGER_THAN_ANY_BLOCK: libc::c_int = 16 << 20;
    const ALL_THAT_A_CACHE_TAKES: libc::c_int = 256 << 20;
    const PIECE: usize = 48 << 20;
    const HUGE_PAGE: usize = 2 << 20;
    // SAFETY: plain numbers; what is allocated is freed at once, and `sbrk(0)` only tells where the heap ends. The advice is about
    // the part of the heap that has been added in between, and changes none of its contents.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGER_THAN_ANY_BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, ALL_THAT_A_CACHE_TAKES);
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TOP_PAD, PIECE as libc::c_int);
        let begin = (libc::sbrk(0) as usize).next_multiple_of(HUGE_PAGE);
        // More than is free in the heap of a program that has just started.
        libc::free(std::hint::black_box(libc::malloc(HUGE_PAGE)));
        let end = libc::sbrk(0) as usize;
        if begin < end {
            // Where it is refused all stays as it was.
            libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_HUGEPAGE);
        }
    }
}

/// As this allocator likes it.
#[cfg(not(target_env = "gnu"))]
pub fn take_memory_in_large_pieces() {}

/// How many processors this process may run on. What a control group allows besides would take reading many files to know.
pub fn processors() -> usize {
    sched_getaffinity(Pid::this()).map_or(1, |set| members(&set).count())
}

fn members(set: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false))
}

/// Not the process's number, which names its first thread.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// The processors that a process may run on, while it keeps to one of them.
#[derive(Clone, Copy)]
pub struct Affinity(CpuSet);

impl Affinity {
    /// Keeps this process, and those that it starts from now on, on the processor that it runs on. `None` where there is no choice,
    /// or none is to be had.
    pub fn narrow() -> Option<Affinity> {
        let before = sched_getaffinity(THIS_THREAD).ok().filter(|set| members(set).nth(1).is_some())?;
        let mut here = CpuSet::new();
        here.set(sched_getcpu().ok()?).ok()?;
        sched_setaffinity(THIS_THREAD, &here).ok()?;
        Some(Affinity(before))
    }

    /// As it was before. Makes system calls alone.
    pub fn restore(&self) {
        // First all there are: of them the kernel gives those of the control group, and more should the group be given more. A set
        // that is asked for by name stays as it is (sched_setaffinity(2)), as it did if the caller had one.
        let mut all = CpuSet::new();
        (0..CpuSet::count()).for_each(|cpu| all.set(cpu).unwrap_or_default());
        let everywhere = sched_setaffinity(THIS_THREAD, &all).and_then(|()| sched_getaffinity(THIS_THREAD));
        if everywhere != Ok(self.0) {
            // A processor that has been taken away meanwhile is no reason not to start.
            sched_setaffinity(THIS_THREAD, &self.0).unwrap_or_default();
        }
    }
}

/// Ends this process at once, without the destructors and buffers that it shares with its parent.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_are_not_one() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv().is_err());
        assert!(!has_one_thread());
        drop(end);
        assert!(other.join().unwrap());
    }
}
