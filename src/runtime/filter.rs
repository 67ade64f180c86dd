//! The seccomp filter of contained programs: system calls that have no place in a job are refused.
//!
//! None of them would do a program without capabilities any good; refused at the door, no fault in them can be reached by an
//! image that was made for it. What programs do need stays: `ptrace` and `process_vm_*` (debuggers, MPI's shared memory),
//! `perf_event_open` (profilers; `kernel.perf_event_paranoid` is the host's own rule), memory policies, `personality`.
//!
//! The rule is a list of what is refused, so that a program made for a kernel of next year runs. Programs for 32-bit x86 run
//! as well and have a list of their own; numbers of the x32 ABI, under which the same calls have other numbers, do not exist.
//! `seccompiler` knows neither, and kills what is not of the one architecture.

use nix::errno::Errno;

use super::sys;

/// How the kernel numbers system calls for one kind of program.
struct Abi {
    /// `AUDIT_ARCH_*` (`include/uapi/linux/audit.h`).
    arch: u32,
    /// Numbers from here on belong to another ABI under the same `arch`.
    foreign_from: Option<u32>,
    /// Refused with EPERM.
    refused: &'static [i64],
    /// ENOSYS: its flags lie in memory, out of a filter's sight. C libraries then use `clone`.
    clone3: i64,
    /// The first argument has the flags of these two.
    clone: i64,
    unshare: i64,
    ioctl: i64,
}

#[cfg(target_arch = "x86_64")]
const ABIS: &[Abi] = &[
    Abi {
        arch: 0xc000_003e,
        foreign_from: Some(0x4000_0000),
        ..NATIVE
    },
    // 32-bit x86 (`arch/x86/entry/syscalls/syscall_32.tbl`).
    Abi {
        arch: 0x4000_0003,
        foreign_from: None,
        refused: &[
            21, 22, 52, 217, 428, 429, 430, 431, 432, 433, 442, // mounting
            288, 286, 287, // keys
            357, 374, 425, 426, 427, // bpf, userfaultfd, io_uring
            283, 127, 128, 350, 129, 88, // kexec_load, modules, reboot
            87, 115, 51, 131, 443, // swap, acct, quotas
            79, 25, 264, 404, // clocks
            110, 101, 113, 166, // ports, vm86
            103, 111, 86, 342, 346, // syslog, vhangup, uselib, open_by_handle_at, setns
        ],
        clone3: 435,
        clone: 120,
        unshare: 310,
        ioctl: 54,
    },
];

#[cfg(target_arch = "aarch64")]
const ABIS: &[Abi] = &[Abi {
    arch: 0xc000_00b7,
    foreign_from: None,
    ..NATIVE
}];

/// The numbers of this program's own ABI.
const NATIVE: Abi = Abi {
    arch: 0,
    foreign_from: None,
    refused: &[
        // Making, moving and taking apart mounts.
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        // The kernel's keys are the user's, whatever the namespace.
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        // Large, and the usual way into kernels. Programs that can use them do without on the many hosts that forbid them.
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        // The machine's, not a job's.
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_syslog,
        libc::SYS_vhangup,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_iopl,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_ioperm,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_uselib,
        // Files by their inode's number, past all folders; other processes' namespaces.
        libc::SYS_open_by_handle_at,
        libc::SYS_setns,
    ],
    clone3: libc::SYS_clone3,
    clone: libc::SYS_clone,
    unshare: libc::SYS_unshare,
    ioctl: libc::SYS_ioctl,
};

/// Requests that type into the terminal that the program shares with its caller's shell.
const TYPING: [u32; 2] = [libc::TIOCSTI as u32, TIOCLINUX];
/// `include/uapi/asm-generic/ioctls.h`.
const TIOCLINUX: u32 = 0x541c;

/// Filters the system calls of this process by [`program`] from now on, and of all that it will execute. `no_new_privs` must be
/// set. Allocates nothing.
///
/// A kernel that was built without filters gets none: what the filter refuses is also refused for want of capabilities.
pub fn apply(program: &[libc::sock_filter]) -> nix::Result<()> {
    match sys::filter_system_calls(program) {
        Err(Errno::ENOSYS | Errno::EINVAL) => Ok(()),
        done => done,
    }
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const SECOND_ARGUMENT: u32 = 24;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The filter as a program of classic BPF.
pub fn program() -> Vec<libc::sock_filter> {
    let mut program = vec![load(ARCH)];
    for abi in ABIS {
        let part = part(abi);
        // Over the part of another architecture: it is longer than a conditional jump reaches.
        program.push(jump(libc::BPF_JEQ, abi.arch, 1, 0));
        program.push(statement(libc::BPF_JMP | libc::BPF_JA, part.len() as u32));
        program.extend(part);
    }
    program.push(give(ENOSYS));
    program
}

/// What is asked when the architecture is `abi`'s: the range of numbers is looked for by halves, then what it leads to.
///
/// By halves since the kernel, when it takes a filter, tries it with every number there is: one test after another would be a tenth
/// of a millisecond of each start.
fn part(abi: &Abi) -> Vec<libc::sock_filter> {
    let ranges = ranges(abi);
    let mut part = vec![load(NUMBER)];
    search(&ranges, ranges.len() - 1, &mut part);
    part.extend([
        give(ALLOW),
        // A user namespace within this one would have all capabilities again in there.
        load(FIRST_ARGUMENT),
        jump(libc::BPF_JSET, libc::CLONE_NEWUSER as u32, 5, 0),
        give(ALLOW),
        load(SECOND_ARGUMENT),
        jump(libc::BPF_JEQ, TYPING[0], 2, 0),
        jump(libc::BPF_JEQ, TYPING[1], 1, 0),
        give(ALLOW),
        give(EPERM),
        give(ENOSYS),
    ]);
    part
}

/// Places behind the search.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Allow = 0,
    Flags = 1,
    Ioctl = 4,
    Eperm = 8,
    Enosys = 9,
}

/// All numbers, by where each range of them begins that leads to one place.
fn ranges(abi: &Abi) -> Vec<(u32, To)> {
    let mut listed: Vec<(u32, To)> = abi.refused.iter().map(|&number| (number as u32, To::Eperm)).collect();
    listed.extend([
        (abi.clone3 as u32, To::Enosys),
        (abi.clone as u32, To::Flags),
        (abi.unshare as u32, To::Flags),
        (abi.ioctl as u32, To::Ioctl),
    ]);
    listed.sort_unstable_by_key(|&(number, _)| number);
    let mut ranges = vec![(0, To::Allow)];
    for (number, to) in listed {
        // What is allowed before it may be nothing.
        ranges.pop_if(|(first, _)| *first == number);
        ranges.extend([(number, to), (number + 1, To::Allow)]);
    }
    ranges.extend(abi.foreign_from.map(|first| (first, To::Enosys)));
    ranges.dedup_by(|next, last| next.1 == last.1);
    ranges
}

/// Looks for a number's range, of which there are at least two. `left` instructions of the whole search are not yet in `part`.
fn search(ranges: &[(u32, To)], left: usize, part: &mut Vec<libc::sock_filter>) {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    // A half of one range needs no search.
    let place = |half: &[(u32, To)], behind: usize| match half {
        [(_, to)] => left - 1 + *to as usize,
        _ => behind,
    };
    part.push(jump(libc::BPF_JGE, upper[0].0, place(upper, lower.len() - 1), place(lower, 0)));
    if lower.len() > 1 {
        search(lower, left - 1, part);
    }
    if upper.len() > 1 {
        search(upper, left - lower.len(), part);
    }
}

fn load(offset: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn give(value: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, value)
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(test: u32, k: u32, yes: usize, no: usize) -> libc::sock_filter {
    let distance = |instructions| u8::try_from(instructions).expect("a part is shorter than 256 instructions");
    libc::sock_filter {
        jt: distance(yes),
        jf: distance(no),
        ..statement(libc::BPF_JMP | test | libc::BPF_K, k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do.
    fn answer(arch: u32, number: u32, arguments: [u32; 2]) -> u32 {
        let program = program();
        let (mut at, mut held) = (0, 0);
        loop {
            let one = program[at];
            let code = u32::from(one.code);
            at += 1;
            let test = |yes: bool| usize::from(if yes { one.jt } else { one.jf });
            match code & 0x07 {
                libc::BPF_LD => {
                    held = match one.k {
                        NUMBER => number,
                        ARCH => arch,
                        FIRST_ARGUMENT => arguments[0],
                        SECOND_ARGUMENT => arguments[1],
                        other => panic!("a load from {other}"),
                    }
                }
                libc::BPF_RET => return one.k,
                libc::BPF_JMP => {
                    at += match code & 0xf0 {
                        libc::BPF_JA => one.k as usize,
                        libc::BPF_JEQ => test(held == one.k),
                        libc::BPF_JGE => test(held >= one.k),
                        libc::BPF_JSET => test(held & one.k != 0),
                        other => panic!("jump {other}"),
                    }
                }
                other => panic!("instruction {other}"),
            }
        }
    }

    #[test]
    fn calls_are_refused_by_number_and_argument_for_every_architecture() {
        let user = libc::CLONE_NEWUSER as u32;
        for abi in ABIS {
            let asked = |number: i64, arguments| answer(abi.arch, number as u32, arguments);
            for &number in abi.refused {
                assert_eq!(asked(number, [0, 0]), EPERM, "{number}");
            }
            assert_eq!(asked(abi.clone3, [0, 0]), ENOSYS);
            for call in [abi.clone, abi.unshare] {
                assert_eq!(asked(call, [user | 17, 0]), EPERM);
                assert_eq!(asked(call, [!user, 0]), ALLOW);
            }
            for request in TYPING {
                assert_eq!(asked(abi.ioctl, [0, request]), EPERM);
                assert_eq!(asked(abi.ioctl, [request, 0]), ALLOW);
            }
            let listed = |number| abi.refused.contains(&number) || number == abi.clone3;
            for number in (0..2000).filter(|&number| !listed(number)) {
                assert_eq!(asked(number, [0, 0]), ALLOW, "{number}");
            }
        }
        let first = &ABIS[0];
        if let Some(foreign) = first.foreign_from {
            assert_eq!(answer(first.arch, foreign, [0, 0]), ENOSYS);
            assert_eq!(answer(first.arch, foreign | libc::SYS_mount as u32, [0, 0]), ENOSYS);
        }
        assert_eq!(answer(0x1234, 0, [0, 0]), ENOSYS);
    }

    #[test]
    fn what_programs_need_is_not_refused() {
        for number in [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_perf_event_open,
            libc::SYS_mbind,
            libc::SYS_personality,
            libc::SYS_seccomp,
            libc::SYS_memfd_create,
        ] {
            assert_eq!(answer(ABIS[0].arch, number as u32, [0, 0]), ALLOW, "{number}");
        }
    }
}
