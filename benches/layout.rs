//! Which of dvrun's functions the start of a container calls, in their order: written to `build/start.ld`, by which the linker
//! lays them side by side (`build/main.rs`). As an ordinary user, with busybox-static, squashfs-tools and binutils:
//!
//! ```text
//! CARGO_PROFILE_BENCH_STRIP=none cargo bench --bench layout
//! ```
//!
//! Each instruction is stepped through (ptrace(2)), in all processes and threads until they execute something else.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

fn main() {
    let dvrun = std::env::var_os("DVRUN_BENCH_EXE").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_dvrun")), PathBuf::from);
    let symbols = Symbols::of(&dvrun);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("bin")).expect("a folder");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static");
    symlink("busybox", root.join("bin/true")).expect("a link");
    let image = dir.path().join("image.squashfs");
    // Uncompressed: millions of steps fewer.
    let stored = ["-noI", "-noD", "-noF", "-noX", "-quiet", "-no-progress"];
    let packed = Command::new("mksquashfs").arg(&root).arg(&image).args(stored).status();
    assert!(packed.is_ok_and(|status| status.success()), "squashfs-tools");

    let mut called = HashSet::new();
    let mut order = Vec::new();
    for image in [&root, &image] {
        let mut command = Command::new(&dvrun);
        command.arg("exec").arg(image).args(["--", "/bin/true"]);
        command.env("HOME", dir.path()).stdin(Stdio::null()).stdout(Stdio::null());
        for offset in stepped(command, symbols.entry) {
            if let Some(name) = symbols.at(offset)
                && called.insert(name)
            {
                order.push(name);
            }
        }
        println!("{:>5} functions of {} with {}", order.len(), dvrun.display(), image.display());
    }
    let sections: Vec<String> = order.into_iter().filter_map(pattern).collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/start.ld");
    fs::write(&script, text(&sections)).expect("build/start.ld");
    println!("{:>5} of them Rust's, in {}", sections.len(), script.display());
}

/// The functions of a program by their addresses, as the program lies in its file.
struct Symbols {
    entry: u64,
    functions: BTreeMap<u64, (u64, String)>,
}

impl Symbols {
    fn of(program: &Path) -> Symbols {
        let listed = Command::new("nm")
            .args(["--defined-only", "--print-size"])
            .arg(program)
            .output()
            .expect("binutils");
        let listed = String::from_utf8(listed.stdout).expect("names in ASCII");
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("a number");
        let functions: BTreeMap<u64, (u64, String)> = listed
            .lines()
            .filter_map(|line| match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                [address, size, "t" | "T", name] => Some((hex(address), (hex(size), name.to_owned()))),
                _ => None,
            })
            .collect();
        let entry = functions
            .iter()
            .find(|(_, (_, name))| name == "_start")
            .map(|(&address, _)| address);
        Symbols {
            entry: entry.expect("a program that is not stripped: CARGO_PROFILE_BENCH_STRIP=none"),
            functions,
        }
    }

    fn at(&self, address: u64) -> Option<&str> {
        let (start, (size, name)) = self.functions.range(..=address).next_back()?;
        (address - start < *size).then_some(name)
    }
}

/// Runs a command step by step. Gives the addresses at which it was, as they lie in its file, each once, in their order.
fn stepped(mut command: Command, entry: u64) -> Vec<u64> {
    // SAFETY: ptrace(2) alone is called between fork and exec.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    // It stops after exec, with which this returns.
    let first = Pid::from_raw(command.spawn().expect("dvrun").id() as i32);
    waitpid(first, None).expect("a process that stopped");
    let base = place(first) - entry;
    let events = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACEEXEC;
    ptrace::setoptions(first, events | Options::PTRACE_O_EXITKILL).expect("options of ptrace");

    let mut seen = HashSet::new();
    let mut order = Vec::new();
    let mut next = Some((first, None));
    loop {
        if let Some((process, signal)) = next {
            match ptrace::step(process, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => panic!("a step: {errno}"),
            }
        }
        next = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Stopped(process, Signal::SIGTRAP)) => {
                let address = place(process).wrapping_sub(base);
                if seen.insert(address) {
                    order.push(address);
                }
                Some((process, None))
            }
            // A new process or thread begins with this.
            Ok(WaitStatus::Stopped(process, Signal::SIGSTOP)) => Some((process, None)),
            Ok(WaitStatus::Stopped(process, signal)) => Some((process, Some(signal))),
            Ok(WaitStatus::PtraceEvent(process, _, libc::PTRACE_EVENT_EXEC)) => {
                ptrace::detach(process, None).expect("a process to be left alone");
                None
            }
            Ok(WaitStatus::PtraceEvent(process, ..)) => Some((process, None)),
            Ok(_) | Err(Errno::EINTR) => None,
            Err(Errno::ECHILD) => return order,
            Err(errno) => panic!("waiting: {errno}"),
        };
    }
}

fn place(process: Pid) -> u64 {
    #[cfg(target_arch = "x86_64")]
    let counter = |registers: libc::user_regs_struct| registers.rip;
    #[cfg(not(target_arch = "x86_64"))]
    let counter = |registers: libc::user_regs_struct| registers.pc;
    // Killed in this moment: then it is nowhere.
    ptrace::getregs(process).map_or(0, counter)
}

/// The name of a function without what the compiler's version puts into it (the crates' disambiguators); `None` for those of the C
/// library, which lie side by side anyway, and are not one section each.
fn pattern(name: &str) -> Option<String> {
    let name = name.strip_prefix("_R")?;
    let mut pattern = String::from("_R");
    let mut rest = name;
    while let Some(start) = rest.find("Cs") {
        let (before, from) = rest.split_at(start);
        pattern += before;
        let digits = from[2..].find('_').unwrap_or(from.len() - 2);
        // Within an identifier it may be anything.
        let is_disambiguator = digits >= 9 && from[2..2 + digits].bytes().all(|byte| byte.is_ascii_alphanumeric());
        pattern += if is_disambiguator { "Cs*" } else { "Cs" };
        rest = &from[if is_disambiguator { 2 + digits } else { 2 }..];
    }
    Some(pattern + rest)
}

fn text(sections: &[String]) -> String {
    let mut text = String::from(
        "/* The functions of a container's start, in the order in which they are called.\n   \
         Written by `cargo bench --bench layout`. What is not there any more does no harm. */\n\
         SECTIONS\n{\n  .text.start :\n  {\n",
    );
    for name in sections {
        // Below `.text.` or `.text.unlikely.`
        text += &format!("    *(.text.*{name})\n");
    }
    text + "  }\n}\nINSERT BEFORE .text;\n"
}
