//! The program of a task: in its container, or on the host.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::image::{self, TaskImage};
use super::scratch::Scratch;
use super::task::{Place, TaskError};
use super::watch::{Cause, End, Ended, Watch};
use crate::lock::LockedImage;
use crate::plan::Task;
use crate::runtime::{self, Container, HostProgram, MissingCwd, Mount, Running, RuntimeError, Stream, User, Writable};
use crate::workflow::{Command, StageUser, Template};

/// Who may end the program, and when it is ended at the latest.
#[derive(Clone, Copy)]
pub(super) struct Supervision<'a> {
    pub watch: &'a Watch,
    pub limit: Option<Duration>,
}

/// Scripts up to here are an argument of the shell; the kernel takes no longer ones (MAX_ARG_STRLEN, execve(2)).
const LONGEST_ARGUMENT: usize = (128 << 10) - 1;

/// Where a longer script is kept in the task's scratch folder.
const SCRIPT: &str = "script";

/// Runs the task's program in a container of `image`, with a scratch folder of its own as `/tmp`.
pub(super) fn in_container(
    task: &Task,
    image: &LockedImage,
    binds: Vec<Mount>,
    place: &Place,
    supervision: Supervision,
    stdout: File,
    stderr: File,
) -> Result<End, TaskError> {
    let absent = || TaskError::NoImage(image.source.clone());
    let image = image::find(image, place.image_access, &place.scratch)?.ok_or_else(absent)?;
    let scratch = scratch(place)?;
    let container = container(task, &image, binds, scratch.path())?;
    let mut running = spawn(place, container, &stdout, &stderr)?;
    supervision.watch.began(Pid::from_raw(running.pid() as i32), supervision.limit);
    let exit = running.wait().map_err(TaskError::Supervise)?;
    let end = end(exit, running.damage().to_vec(), supervision.watch.ended());
    close(scratch, place)?;
    Ok(end)
}

fn end(exit: runtime::Exit, damage: Vec<String>, cause: Cause) -> End {
    End {
        ended: Ended {
            exit: exit.status.code(),
            cpu: exit.usage.cpu,
            memory: exit.usage.max_rss,
            damage,
        },
        cause,
    }
}

fn scratch(place: &Place) -> Result<Scratch, TaskError> {
    Scratch::new_in(&place.scratch).map_err(|source| scratch_error(place, source))
}

fn close(scratch: Scratch, place: &Place) -> Result<(), TaskError> {
    scratch.close().map_err(|source| scratch_error(place, source))
}

fn scratch_error(place: &Place, source: io::Error) -> TaskError {
    TaskError::Scratch {
        path: place.scratch.clone(),
        // Without the path that is in it: it is of no use once more.
        source: source.kind().into(),
    }
}

/// Starts the container. Kernels before 5.11 lay no writable layer over an image for an ordinary user: there the image is
/// read-only, which most programs do not mind, with its binds, `/tmp` and HOME as writable as ever.
fn spawn(place: &Place, mut container: Container, stdout: &File, stderr: &File) -> Result<Running, TaskError> {
    let stdio = || {
        Ok(runtime::Stdio {
            stdin: Stream::Null,
            stdout: stdout.try_clone()?.into(),
            stderr: stderr.try_clone()?.into(),
        })
    };
    match runtime::spawn(&place.exe, &container, stdio().map_err(TaskError::Supervise)?) {
        Err(RuntimeError::Overlay { .. }) => {
            container.writable = Writable::No;
            Ok(runtime::spawn(&place.exe, &container, stdio().map_err(TaskError::Supervise)?)?)
        }
        other => Ok(other?),
    }
}

/// The scratch folder, as seen inside.
const SCRATCH: &str = "/tmp";

/// The private home folder, as seen inside.
const HOME: &str = "/home/user";

/// Policy: what a task's program sees.
fn container(task: &Task, image: &TaskImage, binds: Vec<Mount>, scratch: &Path) -> Result<Container, TaskError> {
    let execution = &image.execution;
    let mut declared = task.env.clone();
    let argv = match &task.command {
        Command::Script(script) if script.0.len() > LONGEST_ARGUMENT => {
            keep_script(&script.0, scratch)?;
            runtime::script_file(&format!("{SCRATCH}/{SCRIPT}"))
        }
        Command::Script(script) => runtime::script(&script.0),
        Command::Argv(words) => texts(words),
        Command::Entrypoint { args } => runtime::entrypoint(execution, &texts(args))?,
        Command::App { name, args } => {
            let app = runtime::app(&image.root, name, &texts(args))?;
            declared.splice(0..0, app.env);
            app.argv
        }
    };
    Ok(Container {
        root: image.root.clone(),
        // Images made for Docker expect to write where they like; it is gone when the task ends.
        writable: Writable::Tmpfs,
        binds,
        env: runtime::environment(execution, &declared, Path::new(HOME), Some(task.resources.cpus)),
        cwd: task.cwd.clone(),
        missing_cwd: MissingCwd::Make,
        argv,
        user: match task.user {
            StageUser::Caller => User::Caller,
            StageUser::Root => User::Root,
            StageUser::Image => User::Image(execution.user.clone()),
        },
        scratch: Some(scratch.to_owned()),
        home: HOME.into(),
        hostname: None,
    })
}

/// Runs a stage of `image: none`: a clean environment, and dvrun's own process group.
pub(super) fn on_host(task: &Task, place: &Place, supervision: Supervision, stdout: &File, stderr: &File) -> Result<End, TaskError> {
    let mut scratch_of_script = None;
    let argv = match &task.command {
        Command::Script(script) if script.0.len() > LONGEST_ARGUMENT => {
            let scratch = scratch_of_script.insert(scratch(place)?);
            let file = keep_script(&script.0, scratch.path())?;
            runtime::script_file(&file.to_string_lossy())
        }
        Command::Script(script) => runtime::script(&script.0),
        Command::Argv(words) => texts(words),
        Command::App { .. } | Command::Entrypoint { .. } => return Err(TaskError::NoProgram(task.stage.clone())),
    };
    let Some(program) = argv.first() else {
        return Err(TaskError::NoProgram(task.stage.clone()));
    };
    let mut env = place.host_env.clone();
    env.retain(|(name, _)| !task.env.iter().any(|(declared, _)| declared == name));
    env.extend(task.env.iter().cloned());
    let running = runtime::spawn_host(&HostProgram {
        argv: &argv,
        env: &env,
        cwd: &task.cwd,
        stdin: None,
        stdout,
        stderr,
    });
    let running = running.map_err(|source| TaskError::Start {
        program: program.clone(),
        source,
    })?;
    // The whole process group.
    supervision
        .watch
        .began(Pid::from_raw(-running.leader().as_raw()), supervision.limit);
    running.wait().map_err(TaskError::Supervise)?;
    // What it left in the background ends with it, as in a container; before its id is free for another process.
    end_group(running.leader())?;
    let cause = supervision.watch.ended();
    let exit = running.reap().map_err(TaskError::Supervise)?;
    if let Some(scratch) = scratch_of_script {
        close(scratch, place)?;
    }
    Ok(end(exit, Vec::new(), cause))
}

/// Runs the command that starts a task on another node; what it complains of goes where this program's complaints go.
pub(super) fn step(argv: &[String], env: &[(String, String)], cwd: &Path, stdin: &File, watch: &Watch) -> Result<Cause, TaskError> {
    let stderr = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(TaskError::Supervise)?;
    let running = runtime::spawn_host(&HostProgram {
        argv,
        env,
        cwd,
        stdin: Some(stdin),
        stdout: &stderr,
        stderr: &stderr,
    });
    let running = running.map_err(|source| TaskError::Start {
        program: argv.join(" "),
        source,
    })?;
    watch.began(running.leader(), None);
    running.wait().map_err(TaskError::Supervise)?;
    let cause = watch.ended();
    running.reap().map_err(TaskError::Supervise)?;
    Ok(cause)
}

/// Writes a script that is too long for an argument into the task's scratch folder.
fn keep_script(text: &str, scratch: &Path) -> Result<PathBuf, TaskError> {
    let path = scratch.join(SCRIPT);
    fs::write(&path, text).map_err(|source| TaskError::Scratch {
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

/// SIGKILL to what is left of the group that the process `leader` led.
fn end_group(leader: Pid) -> Result<(), TaskError> {
    match killpg(leader, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        // All that is left has changed its user, and is not ours to end.
        Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(TaskError::Supervise(errno.into())),
    }
}

fn texts(words: &[Template]) -> Vec<String> {
    words.iter().map(|word| word.0.clone()).collect()
}
