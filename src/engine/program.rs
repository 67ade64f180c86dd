//! The program of a task: in its container, or on the host.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command as HostCommand, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::image::{self, TaskImage};
use super::process::{End, Ended, supervise};
use super::scratch::Scratch;
use super::task::{Place, TaskError};
use crate::lock::LockedImage;
use crate::plan::Task;
use crate::runtime::{self, Container, MissingCwd, Mount, Running, RuntimeError, Stream, User, Writable};
use crate::workflow::{Command, StageUser, Template};

/// Runs the task's program in a container of `image`, with a scratch folder of its own as `/tmp`.
pub(super) fn in_container(
    task: &Task,
    image: &LockedImage,
    binds: Vec<Mount>,
    place: &Place,
    limit: Option<Duration>,
    stdout: File,
    stderr: File,
) -> Result<End, TaskError> {
    let absent = || TaskError::NoImage(image.source.clone());
    let image = image::find(image, place.image_access, &place.scratch)?.ok_or_else(absent)?;
    let scratch_error = |source: io::Error| TaskError::Scratch {
        path: place.scratch.clone(),
        // Without the path that is in it: it is of no use once more.
        source: source.kind().into(),
    };
    let scratch = Scratch::new_in(&place.scratch).map_err(scratch_error)?;
    let container = container(task, &image, binds, scratch.path())?;
    let end = supervise(limit, |report| {
        let mut running = spawn(place, container, &stdout, &stderr)?;
        report(Pid::from_raw(running.pid() as i32));
        let exit = running.wait().map_err(TaskError::Supervise)?;
        Ok(Ended {
            exit: exit.status.code(),
            cpu: exit.usage.cpu,
            memory: exit.usage.max_rss,
            damage: running.damage().to_vec(),
        })
    })?;
    scratch.close().map_err(scratch_error)?;
    Ok(end)
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

/// The private home folder, as seen inside.
const HOME: &str = "/home/user";

/// Policy: what a task's program sees.
fn container(task: &Task, image: &TaskImage, binds: Vec<Mount>, scratch: &Path) -> Result<Container, TaskError> {
    let execution = &image.execution;
    let mut declared = task.env.clone();
    let argv = match &task.command {
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
pub(super) fn on_host(task: &Task, place: &Place, limit: Option<Duration>, stdout: File, stderr: File) -> Result<End, TaskError> {
    let argv = match &task.command {
        Command::Script(script) => runtime::script(&script.0),
        Command::Argv(words) => texts(words),
        Command::App { .. } | Command::Entrypoint { .. } => return Err(TaskError::NoProgram(task.stage.clone())),
    };
    let [program, arguments @ ..] = argv.as_slice() else {
        return Err(TaskError::NoProgram(task.stage.clone()));
    };
    let mut command = HostCommand::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(place.host_env.iter().cloned())
        .envs(task.env.iter().cloned());
    command.current_dir(&task.cwd).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    supervise(limit, |report| {
        let start = |source| TaskError::Start {
            program: program.clone(),
            source,
        };
        let mut child = runtime::spawn_host(&mut command).map_err(start)?;
        // The whole process group.
        report(Pid::from_raw(-(child.id() as i32)));
        // What it left in the background ends with it, as in a container; before its id is free for another process.
        let leader = Pid::from_raw(child.id() as i32);
        waitid(Id::Pid(leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).map_err(|errno| TaskError::Supervise(errno.into()))?;
        end_group(leader)?;
        let status = child.wait().map_err(start)?;
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|errno| TaskError::Supervise(errno.into()))?;
        let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Ok(Ended {
            exit: status.signal().map_or(status.code().unwrap_or(0), |signal| 128 + signal),
            cpu: Duration::from_micros(cpu.unsigned_abs()),
            memory: usage.max_rss().unsigned_abs() * 1024,
            damage: Vec::new(),
        })
    })
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
