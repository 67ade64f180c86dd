//! What `exec`, `run-app` and `shell` share: the options of a container at hand, and watching over it.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use super::failure::{Failure, Outcome, exit};
use super::images::Rootfs;
use super::machine;
use super::settings::{Settings, THIS_PROGRAM};
use crate::runtime::{self, Container, MissingCwd, Mount, Raw, Running, Stdio, Terminal, User, Writable};

/// Options of a container at hand.
#[derive(Args, Debug)]
pub struct ContainerOptions {
    /// source[:target][:ro|rw|optional]; several words with commas between them (repeatable)
    #[arg(long, short = 'B', value_name = "BIND")]
    bind: Vec<BindArgument>,
    /// A variable of the program's environment; NAME alone takes over the caller's value (repeatable)
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<EnvArgument>,
    /// Working directory in the container; it must exist there
    #[arg(long, value_name = "PATH")]
    pwd: Option<PathBuf>,
    /// Let the program write anywhere; what it writes outside binds is gone when it ends
    #[arg(long, conflicts_with = "overlay")]
    writable_tmpfs: bool,
    /// Let the program write anywhere; what it writes outside binds is kept in this folder, for the next one
    #[arg(long, value_name = "DIR")]
    overlay: Option<PathBuf>,
    /// Who to be inside; outside it is always the caller
    #[arg(long, value_enum, default_value = "caller", value_name = "WHO")]
    user: UserArgument,
    /// The same as --user root
    #[arg(long, conflicts_with = "user")]
    fakeroot: bool,
    /// Let the program use GPUs: those that the environment chooses (CUDA_VISIBLE_DEVICES, Slurm's own), or these
    #[arg(long, value_name = "LIST", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    gpus: Option<String>,
    /// Use only what is in the store; ask no server
    #[arg(long)]
    pub offline: bool,
}

/// Who the caller is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UserArgument {
    /// With the caller's own numbers
    Caller,
    /// Root: may change owners and modes of what is the caller's
    Root,
    /// Whom the image's configuration names
    Image,
}

#[derive(Clone, Debug, PartialEq)]
struct BindArgument {
    mount: Mount,
    optional: bool,
}

impl FromStr for BindArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let options = |words: &str| words.split(',').all(|word| matches!(word, "ro" | "rw" | "optional"));
        let (rest, words) = match text.rsplit_once(':') {
            Some((rest, words)) if options(words) => (rest, words),
            _ => (text, ""),
        };
        let (source, target) = rest.split_once(':').unwrap_or((rest, rest));
        if source.is_empty() || target.is_empty() {
            return Err("write source[:target][:ro|rw|optional]".to_owned());
        }
        let source = std::path::absolute(source).map_err(|error| error.to_string())?;
        let target = if rest.contains(':') {
            PathBuf::from(target)
        } else {
            source.clone()
        };
        if !target.is_absolute() {
            return Err(format!("the target `{}` is not absolute: write source:/target", target.display()));
        }
        let read_only = words.split(',').any(|word| word == "ro");
        if read_only && words.split(',').any(|word| word == "rw") {
            return Err("`ro` and `rw` contradict each other".to_owned());
        }
        Ok(BindArgument {
            mount: Mount { source, target, read_only },
            optional: words.split(',').any(|word| word == "optional"),
        })
    }
}

#[derive(Clone, Debug)]
struct EnvArgument(String, Option<String>);

impl FromStr for EnvArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        match name {
            "" => Err("write NAME=VALUE, or NAME".to_owned()),
            name => Ok(EnvArgument(name.to_owned(), value)),
        }
    }
}

/// The private home folder, as seen inside.
const HOME: &str = "/home/user";

impl ContainerOptions {
    /// The container of `image` that runs `argv`; `env` stands before what the options say.
    pub fn container(
        &self,
        image: &Rootfs,
        argv: Vec<String>,
        mut env: Vec<(String, String)>,
        settings: &Settings,
    ) -> Result<Container, Failure> {
        let execution = &image.execution;
        for EnvArgument(name, value) in &self.env {
            match value.clone().or_else(|| std::env::var(name).ok()) {
                Some(value) => env.push((name.clone(), value)),
                None => eprintln!("warning: --env {name}: there is no such variable here"),
            }
        }
        let absolute = |path: &PathBuf| std::path::absolute(path).map_err(|error| Failure::new(exit::USAGE, &error, None));
        let working_dir = Some(execution.working_dir.as_str())
            .filter(|dir| dir.starts_with('/'))
            .unwrap_or("/");
        let mut container = Container {
            root: image.root.clone(),
            writable: match &self.overlay {
                Some(folder) => Writable::Folder(absolute(folder)?),
                None if self.writable_tmpfs => Writable::Tmpfs,
                None => Writable::No,
            },
            binds: self.binds()?,
            env: runtime::environment(execution, &env, Path::new(HOME), None),
            cwd: self.pwd.clone().unwrap_or_else(|| PathBuf::from(working_dir)),
            missing_cwd: match self.pwd {
                Some(_) => MissingCwd::Refuse,
                None => MissingCwd::Make,
            },
            // What follows the first two words (`python3 train.py`) are a program's arguments.
            read_ahead: settings.read_ahead(argv.iter().take(2).cloned().collect::<Vec<_>>().join(" ")),
            argv,
            user: match self.user {
                _ if self.fakeroot => User::Root,
                UserArgument::Caller => User::Caller,
                UserArgument::Root => User::Root,
                UserArgument::Image => User::Image(execution.user.clone()),
            },
            scratch: None,
            home: HOME.into(),
            hostname: None,
        };
        if let Some(list) = &self.gpus {
            let gpus = machine::gpus_for(list)?;
            for note in &gpus.notes {
                eprintln!("note: {note}");
            }
            gpus.add_to(&mut container);
        }
        Ok(container)
    }

    /// Without those that are optional and missing.
    fn binds(&self) -> Result<Vec<Mount>, Failure> {
        let mut binds = Vec::new();
        for BindArgument { mount, optional } in &self.bind {
            let there = !optional
                || mount.source.try_exists().map_err(|error| {
                    let text = format!("cannot look at the bind source {}: {error}", mount.source.display());
                    Failure::message(exit::USAGE, text)
                })?;
            if there {
                binds.push(mount.clone());
            }
        }
        Ok(binds)
    }
}

/// Whether a person sits at both ends.
pub fn at_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The kind of terminal that the caller's programs draw for.
pub fn terminal_type() -> Vec<(String, String)> {
    std::env::var("TERM").map(|kind| ("TERM".to_owned(), kind)).into_iter().collect()
}

/// Runs `container` with the caller's own streams. The status is the program's.
pub fn run(name: &str, container: &Container) -> Outcome {
    if let Some(ended) = runtime::run_here(container)? {
        return Ok(told(name, &ended.damage, ended.exit));
    }
    // There are other threads, as after a conversion. Before the container starts, so that no signal finds dvrun without a handler.
    let signals = signals(&[SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2])?;
    let running = runtime::spawn(Path::new(THIS_PROGRAM), container, Stdio::default())?;
    watch(name, running, signals, || Ok(()))
}

/// Runs `container` on a terminal of its own that the caller's is connected to.
pub fn run_on_terminal(name: &str, container: &Container) -> Outcome {
    let wrong = |error: io::Error| Failure::message(exit::INFRASTRUCTURE, format!("cannot use this terminal: {error}"));
    let (stdin, mut stdout) = (io::stdin(), io::stdout());
    let signals = signals(&[SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2])?;
    let (resized, notify) = UnixStream::pair().map_err(wrong)?;
    signal_hook::low_level::pipe::register(SIGWINCH, notify).map_err(wrong)?;
    let size = runtime::size_of(&stdin).map_err(wrong)?;
    let (running, mut terminal): (Running, Terminal) = runtime::spawn_on_terminal(Path::new(THIS_PROGRAM), container, size)?;
    watch(name, running, signals, move || {
        let raw = Raw::new(stdin.as_fd())?;
        let relayed = terminal.relay(&stdin, &mut stdout, resized);
        drop(raw);
        relayed
    })
}

fn signals(numbers: &[i32]) -> Result<Signals, Failure> {
    Signals::new(numbers).map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))
}

/// Passes signals on and does `meanwhile` until the program has ended.
fn watch(name: &str, mut running: Running, mut signals: Signals, meanwhile: impl FnOnce() -> io::Result<()>) -> Outcome {
    let handle = signals.handle();
    let monitor = Pid::from_raw(running.pid() as i32);
    let (shown, ended) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in signals.forever() {
                // A program that ended in this moment needs no signal.
                Signal::try_from(number)
                    .and_then(|signal| signal::kill(monitor, signal))
                    .unwrap_or_default();
            }
        });
        let shown = meanwhile();
        let ended = running.wait();
        handle.close();
        (shown, ended)
    });
    if let Err(error) = shown {
        return Err(Failure::message(
            exit::INFRASTRUCTURE,
            format!("the terminal cannot be used any more: {error}"),
        ));
    }
    let exit = ended.map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot watch over the container: {error}")))?;
    Ok(told(name, running.damage(), exit))
}

/// Says what of the image could not be read; the program's status.
fn told(name: &str, damage: &[String], exit: runtime::Exit) -> u8 {
    for what in damage {
        eprintln!("warning: the image {name} is damaged: {what}");
    }
    u8::try_from(exit.status.code()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_as_they_are_written() {
        let bind = |text: &str| text.parse::<BindArgument>();
        let shown = |text: &str| {
            let BindArgument { mount, optional } = bind(text).unwrap();
            let (mode, optional) = (if mount.read_only { "ro" } else { "rw" }, if optional { " optional" } else { "" });
            format!("{} {} {mode}{optional}", mount.source.display(), mount.target.display())
        };
        for (text, expected) in [
            ("/a", "/a /a rw"),
            ("/a:ro", "/a /a ro"),
            ("/a:/b", "/a /b rw"),
            ("/a:/b:ro", "/a /b ro"),
            ("/a:/b:optional", "/a /b rw optional"),
            ("/a:/b:ro,optional", "/a /b ro optional"),
            ("/a:optional", "/a /a rw optional"),
        ] {
            assert_eq!(shown(text), expected);
        }
        for text in ["", ":/b", "/a:", "/a:b", "/a:/b:ro,rw", "/a:/b:RO"] {
            assert!(bind(text).is_err() || shown(text).contains("/b:RO"), "{text}");
        }
    }
}
