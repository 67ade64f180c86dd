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
use super::place::{Place, Runtime};
use super::ranks::{self, Rank};
use super::scratch::Scratch;
use super::task::TaskError;
use super::watch::{Cause, End, Ended, Watch};
use crate::lock::LockedImage;
use crate::plan::Task;
use crate::runtime::{
    self, Apptainer, Container, HostProgram, Invocation, Io, MissingCwd, Mount, ReadAhead, Running, RuntimeError, Stream, User, Writable,
};
use crate::state::RunDir;
use crate::store::remove_tree;
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

/// Where memory is a folder that processes of a node share.
const SHARED_MEMORY: &str = "/dev/shm";

/// What a program's standard output and error are.
pub(super) struct Output {
    pub stdout: File,
    pub stderr: File,
}

/// Runs the task's program in a container of `image`, with a scratch folder of its own as `/tmp`. Of a task of several
/// ranks, this is `rank`, which shares that folder with those on its node; or all of them, by `mpirun`.
pub(super) fn in_container(
    task: &Task,
    image: &LockedImage,
    binds: Vec<Mount>,
    place: &Place,
    supervision: Supervision,
    rank: Option<Rank>,
    output: &Output,
) -> Result<End, TaskError> {
    let absent = || TaskError::NoImage(image.source.clone());
    let image = image::find(image, place.image_access, &place.scratch)?.ok_or_else(absent)?;
    let scratch = private_folder(&place.scratch, rank.as_ref())?;
    // Apptainer binds nothing into /dev: there it is the host's.
    let memory = rank
        .as_ref()
        .filter(|_| place.runtime == Runtime::Own)
        .map(|rank| private_folder(Path::new(SHARED_MEMORY), Some(rank)))
        .transpose()?;
    let mut container = container(task, &image, binds, scratch.path(), rank.as_ref())?;
    // The tasks of a stage read alike, whatever their scripts say of shards.
    container.read_ahead = place.read_ahead.clone().map(|folder| ReadAhead {
        folder,
        program: task.stage.to_string(),
    });
    if let Some(memory) = &memory {
        container.binds.push(Mount {
            source: memory.path().to_owned(),
            target: SHARED_MEMORY.into(),
            read_only: false,
        });
    }
    if task.resources.gpus > 0 {
        runtime::find_gpus(Path::new("/"), runtime::chosen_gpus(|name| place.variable(name)))?.add_to(&mut container);
    }
    let end = match &place.runtime {
        Runtime::Own => {
            let mut running = spawn(place, container, rank, output)?;
            supervision.watch.began(Pid::from_raw(running.pid() as i32), supervision.limit);
            let exit = running.wait().map_err(TaskError::Supervise)?;
            end(exit, running.damage().to_vec(), supervision.watch.ended())
        }
        Runtime::Apptainer(program) => {
            // Not below what the program sees as /tmp.
            let aside = private_folder(&place.scratch, None)?;
            let [home, layer] = ["home", "layer"].map(|name| aside.path().join(name));
            fs::create_dir(&home)
                .and_then(|()| fs::create_dir(&layer))
                .map_err(scratch_error(&place.scratch))?;
            let lacking = runtime::mount_points(&container, &layer)?;
            let apptainer = Apptainer {
                program,
                home: &home,
                layer: lacking.then_some(layer.as_path()),
                environment: &place.host_env,
                rank: rank.is_some(),
            };
            let Invocation { argv, env } = runtime::apptainer(&apptainer, &container)?;
            // The task's working directory is the container's, and need not be here.
            let end = group_of(&argv, &env, Path::new("/"), supervision, output)?;
            closed(aside, &place.scratch)?;
            end
        }
    };
    closed(scratch, &place.scratch)?;
    memory.map_or(Ok(()), |memory| closed(memory, Path::new(SHARED_MEMORY)))?;
    Ok(end)
}

fn end(exit: runtime::Exit, damage: Vec<String>, cause: Cause) -> End {
    End {
        ended: Ended {
            exit: exit.status.code(),
            cpu: exit.usage.cpu,
            memory: exit.usage.max_rss,
            io: exit.usage.io,
            damage,
        },
        cause,
    }
}

/// A private folder in `folder`, or the one that a node's ranks share.
fn private_folder(folder: &Path, rank: Option<&Rank>) -> Result<Scratch, TaskError> {
    match rank {
        Some(rank) => Scratch::shared_in(folder, &rank.name),
        None => Scratch::new_in(folder),
    }
    .map_err(scratch_error(folder))
}

fn scratch_error(folder: &Path) -> impl Fn(io::Error) -> TaskError {
    move |source| TaskError::Scratch {
        path: folder.to_owned(),
        // Without the path that is in it: it is of no use once more.
        source: source.kind().into(),
    }
}

fn closed(scratch: Scratch, folder: &Path) -> Result<(), TaskError> {
    scratch.close().map_err(scratch_error(folder))
}

/// Starts the container. Kernels before 5.11 lay no writable layer over an image for an ordinary user: there the image is
/// read-only, which most programs do not mind, with its binds, `/tmp` and HOME as writable as ever.
fn spawn(place: &Place, mut container: Container, rank: Option<Rank>, output: &Output) -> Result<Running, TaskError> {
    let stdio = || -> io::Result<runtime::Stdio> {
        Ok(runtime::Stdio {
            stdin: Stream::Null,
            stdout: output.stdout.try_clone()?.into(),
            stderr: output.stderr.try_clone()?.into(),
        })
    };
    let start = |container: &Container| -> Result<Result<Running, RuntimeError>, TaskError> {
        let stdio = stdio().map_err(TaskError::Supervise)?;
        Ok(match &rank {
            Some(rank) => runtime::spawn_rank(&place.exe, container, stdio, rank.socket.as_ref()),
            None => runtime::spawn(&place.exe, container, stdio),
        })
    };
    match start(&container)? {
        Err(RuntimeError::Overlay { .. }) => {
            container.writable = Writable::No;
            Ok(start(&container)??)
        }
        other => Ok(other?),
    }
}

/// The scratch folder, as seen inside.
const SCRATCH: &str = "/tmp";

/// The private home folder, as seen inside.
const HOME: &str = "/home/user";

/// Policy: what a task's program sees.
fn container(task: &Task, image: &TaskImage, mut binds: Vec<Mount>, scratch: &Path, rank: Option<&Rank>) -> Result<Container, TaskError> {
    let execution = &image.execution;
    let mut declared = task.env.clone();
    match rank {
        Some(rank) => {
            declared.splice(0..0, rank.env.iter().cloned());
            binds.extend(rank.binds.iter().cloned());
        }
        None if ranks::count(task) > 1 => drop(declared.splice(0..0, ranks::mpirun_env())),
        None => {}
    }
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
    let argv = if rank.is_some() { argv } else { ranks::by_mpirun(task, argv) };
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
        read_ahead: None,
    })
}

/// Runs a stage of `image: none`: a clean environment, and a process group of its own.
pub(super) fn on_host(
    task: &Task,
    place: &Place,
    supervision: Supervision,
    rank: Option<&Rank>,
    output: &Output,
) -> Result<End, TaskError> {
    let mut scratch_of_script = None;
    let argv = match &task.command {
        Command::Script(script) if script.0.len() > LONGEST_ARGUMENT => {
            let scratch = scratch_of_script.insert(private_folder(&place.scratch, None)?);
            let file = keep_script(&script.0, scratch.path())?;
            runtime::script_file(&file.to_string_lossy())
        }
        Command::Script(script) => runtime::script(&script.0),
        Command::Argv(words) => texts(words),
        Command::App { .. } | Command::Entrypoint { .. } => return Err(TaskError::NoProgram(task.stage.clone())),
    };
    if argv.is_empty() {
        return Err(TaskError::NoProgram(task.stage.clone()));
    }
    let argv = if rank.is_some() { argv } else { ranks::by_mpirun(task, argv) };
    let mut env = place.host_env.clone();
    env.retain(|(name, _)| !task.env.iter().any(|(declared, _)| declared == name));
    env.extend(task.env.iter().cloned());
    let end = group_of(&argv, &env, &task.cwd, supervision, output)?;
    if let Some(scratch) = scratch_of_script {
        closed(scratch, &place.scratch)?;
    }
    Ok(end)
}

/// Runs a command of the host as the leader of a process group, until nothing of that is left.
fn group_of(argv: &[String], env: &[(String, String)], cwd: &Path, supervision: Supervision, output: &Output) -> Result<End, TaskError> {
    let running = runtime::spawn_host(&HostProgram {
        argv,
        env,
        cwd,
        stdin: None,
        stdout: &output.stdout,
        stderr: &output.stderr,
        outlives: false,
    });
    let running = running.map_err(|source| TaskError::Start {
        program: argv[0].clone(),
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
    Ok(end(exit, Vec::new(), cause))
}

/// Has Slurm start the ranks of a task, and sums up what they used; with how many of their processes were killed for want of
/// memory.
pub(super) fn by_srun(
    task: &Task,
    attempt: u32,
    run: &RunDir,
    place: &Place,
    watch: &Watch,
    output: &Output,
) -> Result<(End, u64), TaskError> {
    let reports = run.logs(&task.stage).join(format!("ranks-{}", task.index));
    let folder = |doing| {
        let path = reports.clone();
        move |source| TaskError::Folder { doing, path, source }
    };
    remove_tree(&reports).map_err(folder("remove"))?;
    fs::create_dir_all(&reports).map_err(folder("create"))?;
    let argv = ranks::srun(task, attempt, run.path(), place, &reports);
    let mut end = group_of(&argv, &place.host_env, &task.cwd, Supervision { watch, limit: None }, output)?;
    let told = ranks::reports(&reports);
    remove_tree(&reports).map_err(folder("remove"))?;
    if !told.is_empty() {
        let io = |io: &dyn Fn(Io) -> u64| told.iter().filter_map(|report| report.ended.io.map(io)).sum();
        // One that failed has Slurm end the others: the status of that one says why, and not theirs.
        let ended_others = [0, 128 + Signal::SIGTERM as i32, 128 + Signal::SIGKILL as i32];
        let failed = told
            .iter()
            .map(|report| report.ended.exit)
            .find(|exit| !ended_others.contains(exit));
        end.ended = Ended {
            exit: failed.unwrap_or(end.ended.exit),
            cpu: told.iter().map(|report| report.ended.cpu).sum(),
            memory: told.iter().map(|report| report.ended.memory).max().unwrap_or(0),
            io: Some(Io {
                read: io(&|io| io.read),
                written: io(&|io| io.written),
            }),
            damage: told.iter().flat_map(|report| report.ended.damage.clone()).collect(),
        };
    }
    Ok((end, told.iter().map(|report| report.kills).sum()))
}

/// Runs the command of a task in a process apart; what it complains of goes where this program's complaints go. One with a
/// standard input learns from its end that this process is gone, and passes that on.
pub(super) fn apart(call: &Invocation, cwd: &Path, stdin: Option<&File>, watch: &Watch) -> Result<Cause, TaskError> {
    let stderr = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(TaskError::Supervise)?;
    let running = runtime::spawn_host(&HostProgram {
        argv: &call.argv,
        env: &call.env,
        cwd,
        stdin,
        stdout: &stderr,
        stderr: &stderr,
        outlives: stdin.is_some(),
    });
    let running = running.map_err(|source| TaskError::Start {
        program: call.argv.join(" "),
        source,
    })?;
    // It tells its program itself.
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
