//! SLURM: plans made by hand, submitted to a real cluster (`SLURM_CONF`) and to a fake one with faults.

mod chain;
mod disruption;
mod fake;
mod faults;
mod here;
mod nodes;
mod prepare;
mod real;
mod rerun;
mod retries;
mod schedules;
mod steer;
mod whole;

use std::path::{Path, PathBuf};

use dvrun::engine::slurm::{Slurm, SlurmProfile, Submission, SubmitError};
use dvrun::lock::Lock;
use dvrun::oci::Digest;
use dvrun::plan::{self, Plan, Reason, StagePlan, TaskSet};
use dvrun::state::{Mode, Outcome, Record, RunDir, RunInfo};
use dvrun::workflow::{Array, Command, Need, Resources, Retry, SlurmOptions, Stage, StageName};

/// A stage that needs others; with `tasks`, an array.
pub fn stage(name: &str, needs: &[&str], tasks: Option<u32>) -> StagePlan {
    let need = |need: &&str| Need {
        stage: StageName((*need).into()),
        same_shard: false,
    };
    StagePlan {
        stage: Stage {
            name: StageName(name.into()),
            needs: needs.iter().map(need).collect(),
            always: false,
            image: None,
            command: Command::Argv(Vec::new()),
            env: Default::default(),
            binds: Vec::new(),
            array: tasks.map(|count| Array {
                count,
                max_parallel: None,
                values: Vec::new(),
            }),
            user: Default::default(),
            resources: Resources::default(),
            outputs: Vec::new(),
            workdir: None,
            retry: Retry::default(),
            slurm: SlurmOptions::default(),
        },
        identity: Digest::sha256(name.as_bytes()),
        parts: Default::default(),
        todo: TaskSet::all(tasks.unwrap_or(1)),
        reason: Reason::NeverRan,
    }
}

/// A workflow's folder with one run of it.
pub struct Work {
    pub dir: PathBuf,
    pub plan: Plan,
    pub run: RunDir,
    /// Deletes the folder; `None` where another process owns it.
    _folder: Option<tempfile::TempDir>,
}

impl Work {
    pub fn new(stages: impl IntoIterator<Item = StagePlan>) -> Work {
        Work::named("work", stages)
    }

    /// A run on this machine.
    pub fn local(stages: impl IntoIterator<Item = StagePlan>) -> Work {
        Work::make("work", Mode::Local, stages)
    }

    /// In a folder of this name.
    pub fn named(name: &str, stages: impl IntoIterator<Item = StagePlan>) -> Work {
        Work::make(name, Mode::Slurm, stages)
    }

    fn make(name: &str, mode: Mode, stages: impl IntoIterator<Item = StagePlan>) -> Work {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let plan = Plan {
            version: plan::VERSION,
            name: "test flow".into(),
            file: dir.join("flow.yaml"),
            dir: dir.clone(),
            params: Default::default(),
            lock: Lock::default(),
            stages: stages.into_iter().map(|stage| (stage.stage.name.clone(), stage)).collect(),
        };
        let info = RunInfo {
            mode,
            user: "tester".into(),
            host: "here".into(),
            created: jiff::Timestamp::now().as_millisecond(),
            version: "0".into(),
        };
        let run = RunDir::draft(&dir, &info, &plan).and_then(|draft| draft.publish()).unwrap();
        Work {
            dir,
            plan,
            run,
            _folder: Some(folder),
        }
    }

    /// The same work, seen from another process.
    pub fn at(run: &Path) -> Work {
        let run = RunDir::at(run.to_owned());
        let plan = run.plan().unwrap();
        Work {
            dir: plan.dir.clone(),
            plan,
            run,
            _folder: None,
        }
    }

    /// A stand-in for the program: `__task RUN STAGE INDEX` writes a record as the program would.
    ///
    /// It obeys shell code in `DIR/do/STAGE.INDEX` (or `DIR/do/STAGE`), and notes each start in `DIR/started`.
    pub fn program(&self) -> PathBuf {
        let path = self.dir.join("stub");
        if !path.exists() {
            std::fs::create_dir_all(self.dir.join("do")).unwrap();
            std::fs::write(&path, STUB).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        path
    }

    /// Shell code for `STAGE` or `STAGE.INDEX`.
    pub fn behave(&self, task: &str, code: &str) {
        self.program();
        std::fs::write(self.dir.join("do").join(task), code).unwrap();
    }

    /// Each start of a task so far, as `STAGE INDEX`.
    pub fn started(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("started")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn submit(&self, slurm: &Slurm) -> Result<Submission, SubmitError> {
        self.submit_as(slurm, &SlurmProfile::default())
    }

    pub fn submit_as(&self, slurm: &Slurm, profile: &SlurmProfile) -> Result<Submission, SubmitError> {
        dvrun::engine::slurm::submit(&self.run, &self.plan, profile, slurm, &self.program().into())
    }
}

/// `sbatch` that takes so many jobs, also from two calls at once, and then says what a site with a limit says. What it knows is
/// in `folder`.
pub fn sbatch_with_limit(jobs: u32, folder: &Path, sbatch: &str) -> String {
    format!(
        "#!/bin/sh\nn=0\nuntil mkdir '{}'/taken-$n 2>/dev/null; do\n  n=$((n + 1))\n  \
         if [ $n -ge {jobs} ]; then echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; fi\ndone\n\
         echo 'Welcome to this site'\nexec {sbatch} \"$@\"\n",
        folder.display()
    )
}

const STUB: &str = r#"#!/bin/sh
run=$2 stage=$3 index=$4
dir=${0%/*}
job=$SLURM_JOB_ID
[ -n "$SLURM_ARRAY_JOB_ID" ] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
record() {
    printf '%-511s\n' "{\"outcome\":$1,\"attempt\":${SLURM_RESTART_COUNT:-0},\"host\":\"node\",\"pid\":$$,\"job\":\"$job\",\"started\":1}" |
        dd of="$run/records/$stage" bs=512 seek="$index" conv=notrunc status=none
}
echo "$stage $index" >>"$dir/started"
record '"running"'
trap 'exit 143' TERM
(
    [ -e "$dir/do/$stage" ] && . "$dir/do/$stage"
    [ -e "$dir/do/$stage.$index" ] && . "$dir/do/$stage.$index"
    exit 0
) &
child=$!
wait $child
status=$?
if [ $status = 0 ]; then record '"ok"'; else record "{\"failed\":{\"exit\":$status}}"; fi
exit $status
"#;

pub fn record(outcome: Outcome, job: Option<&str>) -> Record {
    Record {
        outcome,
        attempt: 0,
        host: "node".into(),
        pid: 1,
        job: job.map(str::to_owned),
        started: 1,
        ended: Some(2),
        cpu: None,
        memory: None,
        read: None,
        written: None,
        message: String::new(),
    }
}
