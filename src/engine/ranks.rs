//! A task of several ranks (MPI): one container a rank.
//!
//! Under Slurm the task starts them by `srun --mpi=NAME`, as steps of `dvrun __task … --rank`: Slurm's plugin offers PMI or
//! PMIx to each process that it starts, and what a rank needs of that (variables, a socket, folders) is passed into its
//! container. The ranks of a node share `/dev/shm` and `/tmp`, folders of this step's own, and the host's PID and IPC
//! namespaces: MPI libraries name each other's memory by process ids, and look whether a neighbour still lives.
//!
//! On one machine the image's own `mpirun` starts them, in one container: it knows its library's protocol, and no other
//! program has to.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::place::{Place, Runtime};
use super::task::TaskError;
use super::watch::Ended;
use crate::plan::Task;
use crate::runtime::{self, Mount};

/// The plugin of Slurm's where no profile names one: what Open MPI, and MPICH since 4.0, ask for.
const PLUGIN: &str = "pmix";

/// Variables of the launcher that are a rank's place among the others.
const PREFIXES: [&str; 5] = ["SLURM_", "PMI_", "PMI2_", "PMIX_", "PMIXPROXY_"];

/// Each rank has a user namespace of its own, from which the kernel lets none into another's memory (`process_vm_readv`) or
/// `/proc/PID/fd`, whatever the user: libraries share memory by files instead.
const APART: [(&str, &str); 3] = [
    ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
    ("UCX_TLS", "^cma"),
    ("UCX_POSIX_USE_PROC_LINK", "n"),
];

/// How many ranks a task has.
pub(super) fn count(task: &Task) -> u32 {
    task.resources.tasks.unwrap_or(1)
}

/// `argv`, started as many times as there are ranks by the `mpirun` beside it.
pub(super) fn by_mpirun(task: &Task, argv: Vec<String>) -> Vec<String> {
    match count(task) {
        1 => argv,
        ranks => ["mpirun".to_owned(), "-n".to_owned(), ranks.to_string()]
            .into_iter()
            .chain(argv)
            .collect(),
    }
}

/// Variables for an `mpirun` in a container: a machine has the cpus that it has, and no ssh.
pub(super) fn mpirun_env() -> [(String, String); 5] {
    [
        // Root in a container of root's is as harmless as root is there.
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "true"),
        ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
        ("OMPI_MCA_plm", "isolated"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// The command that starts every rank of a task in its Slurm job, each as a process of this program.
pub(super) fn srun(task: &Task, attempt: u32, run: &Path, place: &Place, reports: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let resources = &task.resources;
    let mut words = vec![
        "srun".to_owned(),
        format!("--mpi={}", place.mpi.as_deref().unwrap_or(PLUGIN)),
        format!("--ntasks={}", count(task)),
        // Since 22.05 a step does not ask for the job's own by itself.
        format!("--cpus-per-task={}", resources.cpus),
    ];
    // The job was submitted with `NONE`, which a step would inherit.
    words.extend(["--export=ALL", "--kill-on-bad-exit=1", "--input=none"].map(str::to_owned));
    words.extend(resources.nodes.map(|nodes| format!("--nodes={nodes}")));
    words.push(text(&place.program.path));
    words.extend(place.program.options.iter().cloned());
    words.extend(["__task".to_owned(), text(run), task.stage.0.clone(), task.index.to_string()]);
    words.extend(["--attempt".to_owned(), attempt.to_string(), "--rank".to_owned(), text(reports)]);
    if let Runtime::Apptainer(_) = place.runtime {
        words.extend(["--runtime", "apptainer"].map(str::to_owned));
    }
    words
}

/// What a rank in a container shares with the others, taken from the process that Slurm started.
pub(super) struct Rank {
    pub env: Vec<(String, String)>,
    pub binds: Vec<Mount>,
    /// The launcher's socket (`PMI_FD`).
    pub socket: Option<OwnedFd>,
    /// Names the step on this node.
    pub name: String,
}

/// Reads a rank's place from its environment.
pub(super) fn rank(place: &Place) -> Result<Rank, TaskError> {
    let environment = &place.host_env;
    let value = |name: &str| environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let mut env: Vec<_> = environment
        .iter()
        .filter(|(name, _)| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .cloned()
        .collect();
    env.extend(APART.map(|(name, value)| (name.to_owned(), value.to_owned())));
    // Apptainer leaves descriptors as they are, and their numbers.
    let number = value("PMI_FD").filter(|_| place.runtime == Runtime::Own);
    let socket = number.and_then(|number| number.parse().ok()).map(taken).transpose()?;
    if socket.is_some() {
        env.retain(|(name, _)| name != "PMI_FD");
        env.push(("PMI_FD".to_owned(), runtime::RANK_SOCKET.to_string()));
    }
    let part = |name| value(name).unwrap_or("0");
    Ok(Rank {
        binds: folders(environment),
        name: format!("{}-{}-{}", part("SLURM_JOB_ID"), part("SLURM_STEP_ID"), part("SLURM_NODEID")),
        env,
        socket,
    })
}

/// The launcher's own folders, at their own paths.
fn folders(environment: &[(String, String)]) -> Vec<Mount> {
    let is_folder = |name: &str| name == "PMIX_SERVER_TMPDIR" || (name.starts_with("PMIX_DSTORE_") && name.ends_with("_BASE_PATH"));
    let mut binds: Vec<Mount> = Vec::new();
    for (_, path) in environment.iter().filter(|(name, _)| is_folder(name)) {
        let path = PathBuf::from(path);
        if path.is_absolute() && path.is_dir() && !binds.iter().any(|bind| bind.target == path) {
            binds.push(Mount {
                source: path.clone(),
                target: path,
                read_only: false,
            });
        }
    }
    binds
}

/// A copy of a descriptor that this process was started with.
fn taken(number: i32) -> Result<OwnedFd, TaskError> {
    runtime::inherited_copy(number).map_err(|errno| TaskError::Supervise(errno.into()))
}

/// What a rank used: left for the task, in a folder of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    pub ended: Ended,
    /// Processes that were killed for want of memory.
    pub kills: u64,
}

impl Report {
    /// Leaves it in `folder`, under the rank's number.
    pub fn leave(&self, folder: &Path, place: &Place) -> Result<(), TaskError> {
        let path = folder.join(place.variable("SLURM_PROCID").unwrap_or_else(|| "0".to_owned()));
        let text = serde_json::to_vec(self).expect("a report has no maps with odd keys");
        fs::write(&path, text).map_err(|source| TaskError::Folder {
            doing: "write",
            path,
            source,
        })
    }
}

/// All that ranks left in `folder`; a rank that was killed left nothing.
pub(super) fn reports(folder: &Path) -> Vec<Report> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| serde_json::from_slice(&fs::read(file.path()).ok()?).ok())
        .collect()
}
