//! `dvrun exec IMAGE -- CMD…`: one program in a container, at hand.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::images::{self, Rootfs};
use super::machine;
use super::settings::{Settings, THIS_PROGRAM};
use crate::runtime::{self, Container, Mount, Stdio, Writable};

/// Run a program in a container
///
/// Nothing of the host is seen inside but what is bound. The exit status is the program's own.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dvrun exec docker://debian:12 -- cat /etc/os-release\n  dvrun exec image.sif -- python3 --version\n  dvrun exec --bind ./data:/data:ro oci:image:1.0 -- ls /data\n  dvrun exec --gpus image.sif -- nvidia-smi\n  dvrun exec --gpus=0,1 image.sif -- python3 train.py"
)]
pub struct Arguments {
    /// docker://…, oci:DIR[:TAG], a SIF or SquashFS file, or a root folder
    image: String,
    /// The program and its arguments; the image's own where absent
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
    /// source[:target][:ro|rw] (repeatable)
    #[arg(long, short = 'B', value_name = "BIND")]
    bind: Vec<BindArgument>,
    /// A variable of the program's environment (repeatable)
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<EnvArgument>,
    /// Working directory in the container
    #[arg(long, value_name = "PATH")]
    pwd: Option<PathBuf>,
    /// Let the program write anywhere; what it writes outside binds is gone when it ends
    #[arg(long)]
    writable_tmpfs: bool,
    /// Let the program use GPUs: those that the environment chooses (CUDA_VISIBLE_DEVICES, Slurm's own), or these
    #[arg(long, value_name = "LIST", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    gpus: Option<String>,
    /// Use only what is in the store; ask no server
    #[arg(long)]
    offline: bool,
}

#[derive(Clone, Debug)]
struct BindArgument(Mount);

impl FromStr for BindArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rest, read_only) = match text.rsplit_once(':') {
            Some((rest, "ro")) => (rest, true),
            Some((rest, "rw")) => (rest, false),
            _ => (text, false),
        };
        let (source, target) = rest.split_once(':').unwrap_or((rest, rest));
        let source = std::path::absolute(source).map_err(|error| error.to_string())?;
        let target = if rest.contains(':') {
            PathBuf::from(target)
        } else {
            source.clone()
        };
        if !target.is_absolute() {
            return Err(format!("the target `{}` is not absolute: write source:/target", target.display()));
        }
        Ok(BindArgument(Mount { source, target, read_only }))
    }
}

#[derive(Clone, Debug)]
struct EnvArgument(String, String);

impl FromStr for EnvArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(EnvArgument(name.to_owned(), value.to_owned())),
            _ => Err("write NAME=VALUE".to_owned()),
        }
    }
}

pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let image = images::rootfs(&arguments.image, arguments.offline.into(), global, settings)?;
    let mut container = container(arguments, &image)?;
    if let Some(list) = &arguments.gpus {
        let gpus = machine::gpus_for(list)?;
        for note in &gpus.notes {
            eprintln!("note: {note}");
        }
        gpus.add_to(&mut container);
    }
    // Before the container starts, so that no signal finds dvrun without a handler.
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2]).map_err(|error| Failure::new(exit::INFRASTRUCTURE, &error, None))?;
    let handle = signals.handle();
    let mut running = runtime::spawn(Path::new(THIS_PROGRAM), &container, Stdio::default())?;
    let monitor = Pid::from_raw(running.pid() as i32);
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in signals.forever() {
                // A program that ended in this moment needs no signal.
                Signal::try_from(number)
                    .and_then(|signal| signal::kill(monitor, signal))
                    .unwrap_or_default();
            }
        });
        let ended = running.wait();
        handle.close();
        ended
    });
    for what in running.damage() {
        eprintln!("warning: {}: {what}", arguments.image);
    }
    let exit = ended.map_err(|error| Failure::message(exit::INFRASTRUCTURE, format!("cannot watch over the container: {error}")))?;
    Ok(u8::try_from(exit.status.code()).unwrap_or(u8::MAX))
}

/// The private home folder, as seen inside.
const HOME: &str = "/home/user";

fn container(arguments: &Arguments, image: &Rootfs) -> Result<Container, Failure> {
    let execution = &image.execution;
    let declared: Vec<(String, String)> = arguments
        .env
        .iter()
        .map(|variable| (variable.0.clone(), variable.1.clone()))
        .collect();
    let argv = match arguments.command.as_slice() {
        [] => runtime::entrypoint(execution, &[])?,
        words => words.to_vec(),
    };
    let working_dir = Some(execution.working_dir.as_str())
        .filter(|dir| dir.starts_with('/'))
        .unwrap_or("/");
    Ok(Container {
        root: image.root.clone(),
        writable: if arguments.writable_tmpfs { Writable::Tmpfs } else { Writable::No },
        binds: arguments.bind.iter().map(|bind| bind.0.clone()).collect(),
        env: runtime::environment(execution, &declared, Path::new(HOME), None),
        cwd: arguments.pwd.clone().unwrap_or_else(|| PathBuf::from(working_dir)),
        argv,
        as_root: false,
        scratch: None,
        home: HOME.into(),
        hostname: None,
    })
}
