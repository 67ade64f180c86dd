//! The program of a task: in its container, on the host, or as ranks that Slurm starts.

use std::fs::{self, File};
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

use super::io::Io;
use super::process::{End, Ended, supervise};
use super::ranks::{self, Rank};
use super::scratch::Scratch;
use super::task::{Place, Runtime, TaskError};
use crate::lock::LockedImage;
use crate::oci::Execution;
use crate::plan::Task;
use crate::runtime::{self, Apptainer, Container, Mount, Root, Running, RuntimeError, Stream, Writable};
use crate::state::RunDir;
use crate::store::{StoredImage, remove_tree};
use crate::workflow::{Command, Template};

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
    limit: Option<Duration>,
    rank: Option<Rank>,
    output: Output,
) -> Result<End, TaskError> {
    let absent = || TaskError::NoImage(image.source.clone());
    let stored = StoredImage::open(image.path.clone().ok_or_else(absent)?)?.ok_or_else(absent)?;
    let scratch = private_folder(&place.scratch, rank.as_ref())?;
    let memory = rank
        .as_ref()
        .map(|rank| private_folder(Path::new(SHARED_MEMORY), Some(rank)))
        .transpose()?;
    let mut container = container(
        task,
        &stored.rootfs(),
        &stored.info.config.config,
        binds,
        scratch.path(),
        rank.as_ref(),
    )?;
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
            let before = Io::now();
            supervise(limit, |report| {
                let mut running = spawn(place, container, rank, &output)?;
                report(Pid::from_raw(running.pid() as i32));
                let exit = running.wait().map_err(TaskError::Supervise)?;
                Ok(Ended {
                    exit: exit.status.code(),
                    cpu: exit.usage.cpu,
                    memory: exit.usage.max_rss,
                    io: Io::since(before),
                })
            })?
        }
        Runtime::Apptainer(program) => {
            // Not below what the program sees as /tmp.
            let home = private_folder(&place.scratch, None)?;
            let apptainer = Apptainer {
                program,
                home: home.path(),
                environment: &place.host_env,
                rank: rank.is_some(),
            };
            let command = runtime::apptainer(&apptainer, &container)?;
            let end = watched(command, program.display().to_string(), limit, output)?;
            closed(home, &place.scratch)?;
            end
        }
    };
    closed(scratch, &place.scratch)?;
    memory.map_or(Ok(()), |memory| closed(memory, Path::new(SHARED_MEMORY)))?;
    Ok(end)
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
            Some(rank) => runtime::spawn_rank(&place.exe, container, stdio, rank.place, rank.socket.as_ref()),
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

/// The private home folder, as seen inside.
const HOME: &str = "/home/user";

/// Policy: what a task's program sees.
fn container(
    task: &Task,
    rootfs: &Path,
    execution: &Execution,
    mut binds: Vec<Mount>,
    scratch: &Path,
    rank: Option<&Rank>,
) -> Result<Container, TaskError> {
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
        Command::Script(script) => runtime::script(&script.0),
        Command::Argv(words) => texts(words),
        Command::Entrypoint { args } => runtime::entrypoint(execution, &texts(args))?,
        Command::App { name, args } => {
            let app = runtime::app(rootfs, name, &texts(args))?;
            declared.splice(0..0, app.env);
            app.argv
        }
    };
    let argv = if rank.is_some() { argv } else { ranks::by_mpirun(task, argv) };
    Ok(Container {
        root: Root::Folder(rootfs.to_owned()),
        // Images made for Docker expect to write where they like; it is gone when the task ends.
        writable: Writable::Tmpfs,
        binds,
        env: runtime::environment(execution, &declared, Path::new(HOME), Some(task.resources.cpus)),
        cwd: task.cwd.clone(),
        argv,
        as_root: false,
        scratch: Some(scratch.to_owned()),
        home: HOME.into(),
        hostname: None,
    })
}

/// Runs a stage of `image: none`: a clean environment, and dvrun's own process group.
pub(super) fn on_host(task: &Task, place: &Place, limit: Option<Duration>, rank: Option<&Rank>, output: Output) -> Result<End, TaskError> {
    let argv = match &task.command {
        Command::Script(script) => runtime::script(&script.0),
        Command::Argv(words) => texts(words),
        Command::App { .. } | Command::Entrypoint { .. } => return Err(TaskError::NoProgram(task.stage.clone())),
    };
    let argv = if rank.is_some() { argv } else { ranks::by_mpirun(task, argv) };
    let [program, arguments @ ..] = argv.as_slice() else {
        return Err(TaskError::NoProgram(task.stage.clone()));
    };
    let mut command = HostCommand::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(place.host_env.iter().cloned())
        .envs(task.env.iter().cloned());
    command.current_dir(&task.cwd);
    watched(command, program.clone(), limit, output)
}

/// Has Slurm start the ranks of a task, and sums up what they used.
pub(super) fn by_srun(task: &Task, run: &RunDir, place: &Place, output: Output) -> Result<(End, u64), TaskError> {
    let reports = run.logs(&task.stage).join(format!("ranks-{}", task.index));
    let folder = |doing| {
        let path = reports.clone();
        move |source| TaskError::Folder { doing, path, source }
    };
    remove_tree(&reports).map_err(folder("remove"))?;
    fs::create_dir_all(&reports).map_err(folder("create"))?;
    let mut command = ranks::srun(task, run.path(), place, &reports);
    command.current_dir(&task.cwd);
    let mut end = watched(command, "srun".to_owned(), None, output)?;
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
        };
    }
    Ok((end, told.iter().map(|report| report.kills).sum()))
}

/// Runs a command of the host as the leader of a process group, until nothing of that is left.
fn watched(mut command: HostCommand, name: String, limit: Option<Duration>, output: Output) -> Result<End, TaskError> {
    command.stdin(Stdio::null()).stdout(output.stdout).stderr(output.stderr);
    let before = Io::now();
    supervise(limit, |report| {
        let start = |source| TaskError::Start {
            program: name.clone(),
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
            io: Io::since(before),
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
