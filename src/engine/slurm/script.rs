//! Plan → job scripts. Pure: what `plan --scripts` shows is what `submit` submits.

use std::path::{Path, PathBuf};

use minijinja::{Environment, context};

use super::array::{Chunk, chunks, indices};
use super::partition::choose;
use super::profile::{Export, GpuFlag, MemoryFlag, SlurmProfile};
use crate::plan::{Plan, StagePlan, TaskSet};
use crate::state::RunDir;
use crate::workflow::units::Seconds;
use crate::workflow::{Resources, Stage, StageName};

/// `slurm/job.sh.j2`, compiled in.
const TEMPLATE: &str = include_str!("../../../slurm/job.sh.j2");

/// What a cluster takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `MaxArraySize`: array indices lie below it.
    pub array_size: u32,
    /// `max_array_tasks` of `SchedulerParameters`.
    pub array_tasks: Option<u32>,
}

impl Default for Limits {
    /// Slurm's own defaults.
    fn default() -> Self {
        Limits {
            array_size: 1001,
            array_tasks: None,
        }
    }
}

/// This program, as every node finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// Options that go before its command: which configuration the submitting call was told to use.
    pub options: Vec<String>,
}

impl From<PathBuf> for Program {
    fn from(path: PathBuf) -> Program {
        Program { path, options: Vec::new() }
    }
}

/// One job's script.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    pub stage: StageName,
    pub chunk: Chunk,
    /// Where in the run folder it is kept.
    pub path: PathBuf,
    pub text: String,
}

/// Why a script cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("a job script cannot hold {what} `{text}`: {why}")]
    Unwritable {
        what: &'static str,
        text: String,
        why: &'static str,
    },
    #[error("stage {stage}: no partition of the profile has room for it: {why}")]
    NoPartition { stage: StageName, why: String },
    #[error("the job script's template is wrong")]
    Template(#[from] minijinja::Error),
}

impl ScriptError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        match self {
            ScriptError::Unwritable { .. } => Some("Slurm does not take such a name in any form; rename it".to_owned()),
            ScriptError::NoPartition { .. } => {
                Some("lower its resources, or name a partition for it: `slurm: {partition: …}`, or `partition` in the profile".to_owned())
            }
            ScriptError::Template(_) => None,
        }
    }
}

/// The scripts of `stage` for those of its tasks in `todo`, a script for each job.
///
/// `run` need not exist yet.
pub fn scripts(
    run: &RunDir,
    plan: &Plan,
    stage: &StagePlan,
    todo: &TaskSet,
    profile: &SlurmProfile,
    program: &Program,
    limits: Limits,
) -> Result<Vec<Script>, ScriptError> {
    let name = &stage.stage.name;
    let mut environment = Environment::new();
    environment.add_template("job", TEMPLATE)?;
    let template = environment.get_template("job")?;
    let mut words = vec![shell_word("path", path_text(&program.path)?)?];
    for option in &program.options {
        words.push(shell_word("option", option)?);
    }
    let setup = setup(profile)?;
    let folder = shell_word("path", path_text(run.path())?)?;
    let mut scripts = Vec::new();
    for chunk in chunks(todo, limits.array_size, limits.array_tasks) {
        // A name of its own for each piece, which the next `submit` after a crash finds again.
        let first = chunk.tasks.ranges().first().map_or(0, |range| range.0);
        let path = match first {
            0 => run.script(name),
            _ => run.script(name).with_file_name(format!("{name}.{first}.sbatch")),
        };
        let text = template.render(context! {
            options => options(run, plan, stage, &chunk, profile)?,
            array => stage.stage.array.is_some(),
            offset => chunk.offset,
            setup => setup,
            program => words.join(" "),
            run => folder,
            stage => name.0,
            words => more_words(stage, profile)?,
        })?;
        scripts.push(Script {
            stage: name.clone(),
            chunk,
            path,
            text: text + "\n",
        });
    }
    Ok(scripts)
}

/// What else a task of this stage is told.
fn more_words(stage: &StagePlan, profile: &SlurmProfile) -> Result<Vec<String>, ScriptError> {
    let mut words = Vec::new();
    if profile.apptainer {
        words.extend(["--runtime", "apptainer"].map(str::to_owned));
    }
    if let Some(mpi) = &profile.mpi
        && stage.stage.resources.tasks.is_some_and(|tasks| tasks > 1)
    {
        words.extend(["--mpi".to_owned(), shell_word("the MPI plugin", mpi)?]);
    }
    Ok(words)
}

/// The job's name less its token.
pub fn job_name(plan: &Plan, stage: &StageName) -> String {
    let name: String = plan
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' })
        .take(64)
        .collect();
    format!("{name}.{stage}")
}

fn options(run: &RunDir, plan: &Plan, stage: &StagePlan, chunk: &Chunk, profile: &SlurmProfile) -> Result<Vec<String>, ScriptError> {
    let stage = &stage.stage;
    let mut options = vec![format!("--job-name={}", job_name(plan, &stage.name))];
    if let Some(array) = &stage.array {
        let limit = array.max_parallel.map(|most| format!("%{most}")).unwrap_or_default();
        options.push(format!("--array={}{limit}", indices(chunk)));
    }
    resources(&stage.resources, profile, &mut options);
    let partition = partition(stage, profile)?;
    for (option, value) in [
        ("account", profile.account.as_deref()),
        ("partition", partition),
        ("qos", profile.qos.as_deref()),
        ("constraint", profile.constraint.as_deref()),
    ] {
        if let Some(value) = value {
            options.push(option_word(&format!("--{option}={value}"))?);
        }
    }
    options.push(option_word(&format!("--chdir={}", path_text(&plan.dir)?))?);
    // In file names of Slurm's, `%` begins a placeholder and `%%` is itself.
    let log = path_text(&run.logs(&stage.name))?.replace('%', "%%");
    options.push(option_word(&format!("--output={log}/slurm-%A.log"))?);
    options.push("--open-mode=append".to_owned());
    options.push("--requeue".to_owned());
    options.push(match profile.export {
        Export::None => "--export=NONE".to_owned(),
        Export::Nil => "--export=NIL".to_owned(),
    });
    let kill = profile.kill_invalid_depend.or(is_awaited_always(plan, stage).then_some(true));
    if let Some(kill) = kill {
        options.push(format!("--kill-on-invalid-dep={}", if kill { "yes" } else { "no" }));
    }
    for arg in profile.args.iter().chain(&stage.slurm.args) {
        options.push(option_word(arg)?);
    }
    Ok(options)
}

/// The stage's own, or the first of the profile's that has room for it, or the profile's one.
fn partition<'a>(stage: &'a Stage, profile: &'a SlurmProfile) -> Result<Option<&'a str>, ScriptError> {
    if stage.slurm.partition.is_some() || profile.partitions.is_empty() {
        return Ok(stage.slurm.partition.as_deref().or(profile.partition.as_deref()));
    }
    let small = match choose(stage, &profile.partitions) {
        Ok(chosen) => return Ok(Some(chosen)),
        Err(_) if profile.partition.is_some() => return Ok(profile.partition.as_deref()),
        Err(small) => small,
    };
    let why: Vec<String> = small.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    Err(ScriptError::NoPartition {
        stage: stage.name.clone(),
        why: why.join(", "),
    })
}

/// What a job does before its task: the profile's environment and modules.
fn setup(profile: &SlurmProfile) -> Result<Vec<String>, ScriptError> {
    let mut lines = Vec::new();
    for (name, value) in &profile.env {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.starts_with(|c: char| c.is_ascii_digit());
        if name.is_empty() || !plain {
            return Err(ScriptError::Unwritable {
                what: "the variable",
                text: name.clone(),
                why: "it is no name of an environment variable",
            });
        }
        lines.push(format!("export {name}={}", shell_word("value", value)?));
    }
    if !profile.modules.is_empty() {
        let words = profile.modules.iter().map(|module| shell_word("module", module));
        // A shell that is no login shell does not know the command.
        lines.push("command -v module >/dev/null 2>&1 || . /etc/profile".to_owned());
        lines.push(format!("module load {} || exit 3", words.collect::<Result<Vec<_>, _>>()?.join(" ")));
    }
    Ok(lines)
}

/// Whether a stage that always runs waits for this one. Were this one to wait for ever, the other would too.
fn is_awaited_always(plan: &Plan, stage: &Stage) -> bool {
    let mut waiting: Vec<&StageName> = Vec::new();
    // Backwards: what needs a stage stands after it.
    for (name, later) in plan.stages.iter().rev() {
        let later = &later.stage;
        if later.always || waiting.contains(&name) {
            if later.name == stage.name {
                return waiting.contains(&name);
            }
            waiting.extend(later.needs.iter().map(|need| &need.stage));
        }
    }
    false
}

fn resources(resources: &Resources, profile: &SlurmProfile, options: &mut Vec<String>) {
    options.push(format!("--cpus-per-task={}", resources.cpus));
    if let Some(memory) = resources.memory {
        options.push(match profile.memory {
            MemoryFlag::Mem => format!("--mem={}M", memory.mebibytes()),
            MemoryFlag::MemPerCpu => format!("--mem-per-cpu={}M", memory.mebibytes().div_ceil(u64::from(resources.cpus.max(1)))),
        });
    }
    if let Some(time) = resources.time {
        options.push(format!("--time={}", slurm_time(time)));
        if let Some(before) = warning(time) {
            options.push(format!("--signal=B:USR1@{before}"));
        }
    }
    if resources.gpus > 0 {
        options.push(match profile.gpus {
            GpuFlag::Gres => format!("--gres=gpu:{}", resources.gpus),
            GpuFlag::Gpus => format!("--gpus={}", resources.gpus),
            GpuFlag::GpusPerNode => format!("--gpus-per-node={}", resources.gpus),
        });
    }
    if let Some(nodes) = resources.nodes {
        options.push(format!("--nodes={nodes}"));
    }
    if let Some(tasks) = resources.tasks {
        options.push(format!("--ntasks={tasks}"));
    }
    if let Some(scratch) = resources.scratch {
        options.push(format!("--tmp={}M", scratch.mebibytes()));
    }
}

/// `[days-]hours:minutes:seconds`. Slurm counts whole minutes; zero would mean no limit.
pub fn slurm_time(time: Seconds) -> String {
    let seconds = time.0.max(1);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let days = if days > 0 { format!("{days}-") } else { String::new() };
    format!("{days}{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Seconds before the time limit at which the task is told. Slurm tells up to a minute early, so a short job is not
/// told at all: it would lose much of its time.
fn warning(time: Seconds) -> Option<u64> {
    (time.0 >= 600).then_some(60)
}

/// A word of a `#SBATCH` line. Slurm takes quotes as a shell does, and `#` outside of them as the end.
fn option_word(text: &str) -> Result<String, ScriptError> {
    writable("the option", text)?;
    if text.contains('\\') {
        return Err(ScriptError::Unwritable {
            what: "the option",
            text: text.to_owned(),
            why: "a backslash changes how Slurm reads file names",
        });
    }
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=./:,%@+".contains(&b)) {
        return Ok(text.to_owned());
    }
    Ok(match text.contains('\'') {
        false => format!("'{text}'"),
        // Within double quotes Slurm knows the backslash.
        true => format!("\"{}\"", text.replace('"', "\\\"")),
    })
}

/// A word of the shell's.
pub fn shell_word(what: &'static str, text: &str) -> Result<String, ScriptError> {
    writable(what, text)?;
    Ok(if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=./:,%@+".contains(&b)) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    })
}

fn writable(what: &'static str, text: &str) -> Result<(), ScriptError> {
    if text.chars().any(char::is_control) {
        return Err(ScriptError::Unwritable {
            what,
            text: text.escape_debug().to_string(),
            why: "it has control characters",
        });
    }
    Ok(())
}

fn path_text(path: &Path) -> Result<&str, ScriptError> {
    path.to_str().ok_or_else(|| ScriptError::Unwritable {
        what: "the path",
        text: path.display().to_string(),
        why: "it is not UTF-8",
    })
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;
    use crate::engine::slurm::partition::Partition;
    use crate::engine::testing;
    use crate::oci::Digest;
    use crate::plan::Reason;
    use crate::workflow::units::Bytes;
    use crate::workflow::{Array, SlurmOptions};

    fn stage(name: &str, needs: &[&str]) -> StagePlan {
        StagePlan {
            stage: testing::stage(name, 1, needs),
            identity: Digest::sha256(b""),
            parts: Default::default(),
            todo: TaskSet::all(1),
            reason: Reason::NeverRan,
        }
    }

    fn plan(dir: &str, stages: Vec<StagePlan>) -> Plan {
        Plan {
            version: 1,
            name: "Exome study (2)".into(),
            file: format!("{dir}/flow.yaml").into(),
            dir: dir.into(),
            params: IndexMap::new(),
            lock: Default::default(),
            stages: stages.into_iter().map(|stage| (stage.stage.name.clone(), stage)).collect(),
        }
    }

    fn program() -> Program {
        PathBuf::from("/opt/dvrun").into()
    }

    fn render(plan: &Plan, at: usize, profile: &SlurmProfile) -> Result<Vec<String>, ScriptError> {
        let run = RunDir::at(plan.dir.join(".dvrun/runs/r1"));
        let stage = &plan.stages[at];
        let scripts = scripts(&run, plan, stage, &stage.todo, profile, &program(), Limits::default())?;
        Ok(scripts.into_iter().map(|script| script.text).collect())
    }

    #[test]
    fn everything_that_can_be_asked_for() {
        let mut call = stage("call", &[]);
        call.stage.array = Some(Array {
            count: 1010,
            max_parallel: Some(32),
            values: Vec::new(),
        });
        call.todo = [0, 1, 2, 7, 1009].into_iter().collect();
        call.stage.resources = Resources {
            cpus: 3,
            memory: Some(Bytes(4 << 30)),
            time: Some(Seconds(90_061)),
            gpus: 2,
            nodes: Some(1),
            tasks: Some(4),
            scratch: Some(Bytes(1 << 30)),
        };
        call.stage.slurm = SlurmOptions {
            partition: Some("long".into()),
            args: vec!["--mail-type=FAIL".into(), "--comment=two words".into()],
        };
        let profile = SlurmProfile {
            account: Some("lab".into()),
            partition: Some("short".into()),
            qos: Some("q".into()),
            constraint: Some("avx&ib".into()),
            memory: MemoryFlag::MemPerCpu,
            gpus: GpuFlag::Gpus,
            kill_invalid_depend: Some(false),
            export: Export::Nil,
            mpi: Some("pmi2".into()),
            apptainer: true,
            args: vec!["--exclusive=user".into()],
            modules: vec!["gcc/12".into(), "a b".into()],
            env: IndexMap::from([("LAB".to_owned(), "it's $5".to_owned())]),
            ..SlurmProfile::default()
        };
        let texts = render(&plan("/w", vec![call]), 0, &profile).unwrap();
        assert_eq!(
            texts[0],
            "\
#!/bin/sh
#SBATCH --job-name=Exome_study__2_.call
#SBATCH --array=0-2,7%32
#SBATCH --cpus-per-task=3
#SBATCH --mem-per-cpu=1366M
#SBATCH --time=1-01:01:01
#SBATCH --signal=B:USR1@60
#SBATCH --gpus=2
#SBATCH --nodes=1
#SBATCH --ntasks=4
#SBATCH --tmp=1024M
#SBATCH --account=lab
#SBATCH --partition=long
#SBATCH --qos=q
#SBATCH '--constraint=avx&ib'
#SBATCH --chdir=/w
#SBATCH --output=/w/.dvrun/runs/r1/logs/call/slurm-%A.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --export=NIL
#SBATCH --kill-on-invalid-dep=no
#SBATCH --exclusive=user
#SBATCH --mail-type=FAIL
#SBATCH '--comment=two words'

export LAB='it'\\''s $5'
command -v module >/dev/null 2>&1 || . /etc/profile
module load gcc/12 'a b' || exit 3
# Slurm bounds array indices, not tasks: this array's index 0 is task 0.
index=$((SLURM_ARRAY_TASK_ID + 0))
# exec: signals reach the task itself, and its exit status is the job's.
exec /opt/dvrun __task /w/.dvrun/runs/r1 call \"$index\" --runtime apptainer --mpi pmi2
"
        );
        assert_eq!(texts.len(), 2);
        assert!(
            texts[1].contains("#SBATCH --array=8%32\n") && texts[1].contains("TASK_ID + 1001))"),
            "{}",
            texts[1]
        );
    }

    #[test]
    fn the_least_that_can_be_asked_for() {
        let texts = render(&plan("/w", vec![stage("a", &[])]), 0, &SlurmProfile::default()).unwrap();
        assert!(
            texts[0].contains("\nindex=0\n") && !texts[0].contains("--mem") && !texts[0].contains("--time"),
            "{}",
            texts[0]
        );
        assert!(!texts[0].contains("kill-on-invalid-dep"));
    }

    #[test]
    fn names_that_no_script_can_hold_are_refused() {
        for dir in ["/w/a\nb", "/w/back\\slash", "/w/\u{7f}"] {
            let error = render(&plan(dir, vec![stage("a", &[])]), 0, &SlurmProfile::default()).unwrap_err();
            assert!(matches!(error, ScriptError::Unwritable { .. }) && error.hint().is_some(), "{dir:?}");
        }
        let mut odd = stage("a", &[]);
        odd.stage.slurm.args.push("--x\n#SBATCH --uid=0".into());
        render(&plan("/w", vec![odd]), 0, &SlurmProfile::default()).unwrap_err();
        for name in ["", "1A", "A B", "A;rm"] {
            let profile = SlurmProfile {
                env: IndexMap::from([(name.to_owned(), String::new())]),
                ..SlurmProfile::default()
            };
            render(&plan("/w", vec![stage("a", &[])]), 0, &profile).unwrap_err();
        }
    }

    #[test]
    fn a_partition_is_chosen_where_the_profile_has_several() {
        let mut long = stage("a", &[]);
        long.stage.resources.time = Some(Seconds(86_400));
        let named = |name: &str, time| Partition {
            name: name.to_owned(),
            time: Some(Seconds(time)),
            ..Partition::default()
        };
        let mut profile = SlurmProfile {
            partitions: vec![named("short", 3600), named("long", 7 * 86_400)],
            ..SlurmProfile::default()
        };
        let plan = plan("/w", vec![long]);
        assert!(render(&plan, 0, &profile).unwrap()[0].contains("#SBATCH --partition=long\n"));
        profile.partitions.pop();
        let error = render(&plan, 0, &profile).unwrap_err();
        assert_eq!(
            error.to_string(),
            "stage a: no partition of the profile has room for it: short (time: 1-00:00:00 of 01:00:00)"
        );
        profile.partition = Some("rest".to_owned());
        assert!(render(&plan, 0, &profile).unwrap()[0].contains("#SBATCH --partition=rest\n"));
    }

    #[test]
    fn what_an_always_stage_waits_for_must_not_wait_for_ever() {
        let mut report = stage("report", &["b"]);
        report.stage.always = true;
        let plan = plan("/w", vec![stage("a", &[]), stage("b", &["a"]), report, stage("other", &["a"])]);
        let kills = |at| render(&plan, at, &SlurmProfile::default()).unwrap()[0].contains("--kill-on-invalid-dep=yes");
        assert_eq!([kills(0), kills(1), kills(2), kills(3)], [true, true, false, false]);
    }
}
