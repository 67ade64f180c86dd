//! A cluster of files (`tests/support/fake_slurm`), and a process that submits to it and may be killed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dvrun::engine::slurm::Slurm;
use dvrun::workflow::StageName;

use super::Work;

/// Names the run folder for a test process that submits and may be killed; see [`submitting_process`].
const SUBMIT: &str = "DVRUN_TEST_SUBMIT";
/// The same for the process that starts it.
const GUARD: &str = "DVRUN_TEST_GUARD";

pub struct Fake {
    pub dir: PathBuf,
    pub slurm: Slurm,
}

impl Fake {
    pub fn new(work: &Work) -> Fake {
        let dir = work.dir.with_file_name("cluster");
        for folder in ["bin", "jobs", "state", "reason", "faults", "account"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let script = crate::support::checkout().join("tests/support/fake_slurm");
        for name in ["sbatch", "squeue", "sacct", "scancel", "scontrol"] {
            symlink(&script, dir.join("bin").join(name)).unwrap();
        }
        fs::write(dir.join("accounts"), "").unwrap();
        Fake { slurm: slurm(&dir), dir }
    }

    pub fn faults(&self, command: &str, faults: &[&str]) {
        fs::write(
            self.dir.join("faults").join(command),
            faults.iter().map(|fault| format!("{fault}\n")).collect::<String>(),
        )
        .unwrap();
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> Vec<FakeJob> {
        let mut ids: Vec<u32> = fs::read_dir(self.dir.join("jobs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        ids.sort_unstable();
        ids.iter().map(|id| self.job(&id.to_string())).collect()
    }

    pub fn job(&self, id: &str) -> FakeJob {
        let line = fs::read_to_string(self.dir.join("jobs").join(id)).unwrap();
        let fields: Vec<&str> = line.trim_end().split('|').collect();
        let file = Path::new(fields[3]).file_name().unwrap().to_str().unwrap();
        FakeJob {
            id: id.to_owned(),
            token: fields[0].rsplit('.').next().unwrap().to_owned(),
            comment: fields[1].to_owned(),
            dependency: fields[2].to_owned(),
            stage: file.split('.').next().unwrap().to_owned(),
        }
    }

    /// How many calls of `sbatch` may be under way at once.
    pub fn at_once(&mut self, number: usize) {
        fs::write(self.dir.join("at_once"), number.to_string()).unwrap();
        self.slurm.at_once = number;
    }

    pub fn calls(&self, command: &str) -> usize {
        let calls = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.split(' ').next() == Some(command)).count()
    }

    pub fn set_state(&self, id: &str, state: &str) {
        fs::write(self.dir.join("state").join(id), state).unwrap();
    }

    /// The controller forgets a job; the accounts keep how it ended.
    pub fn forget(&self, id: &str) {
        fs::rename(self.dir.join("state").join(id), self.dir.join("account").join(id)).unwrap();
    }
}

#[derive(Debug)]
pub struct FakeJob {
    pub id: String,
    pub token: String,
    pub comment: String,
    pub dependency: String,
    pub stage: String,
}

pub fn slurm(dir: &Path) -> Slurm {
    let path = format!("{}:/usr/bin:/bin", dir.join("bin").display());
    // Faults are taken in the order of calls, which is told only if one ends before the next begins.
    let at_once = fs::read_to_string(dir.join("at_once")).map_or(1, |number| number.trim().parse().unwrap());
    Slurm {
        limit: Duration::from_secs(3),
        settle: Duration::ZERO,
        at_once,
        ..Slurm::new([("PATH".into(), path.into()), ("FAKE_SLURM".into(), dir.into())])
    }
}

pub fn name(name: &str) -> StageName {
    StageName(name.into())
}

/// Submits in a process of its own; false when that was killed. What it left behind has ended too.
pub fn submit_elsewhere(work: &Work, fake: &Fake) -> bool {
    work.program();
    let output = role("slurm::fake::guarding_process")
        .env(GUARD, work.run.path())
        .env("FAKE_SLURM", &fake.dir)
        .output()
        .unwrap();
    output.status.success()
}

fn role(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]);
    command
}

/// Not a test by itself: starts [`submitting_process`], and inherits the calls of `sbatch` that outlive it.
#[test]
fn guarding_process() {
    let Some(run) = std::env::var_os(GUARD) else { return };
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let submitted = role("slurm::fake::submitting_process").env(SUBMIT, run).output().unwrap();
    while nix::sys::wait::wait().is_ok() {}
    assert!(submitted.status.success(), "{submitted:?}");
}

/// Not a test by itself: [`guarding_process`] runs it.
#[test]
fn submitting_process() {
    let Some(run) = std::env::var_os(SUBMIT) else { return };
    let work = Work::at(Path::new(&run));
    let slurm = slurm(Path::new(&std::env::var_os("FAKE_SLURM").unwrap()));
    if let Err(error) = work.submit(&slurm) {
        println!("{error}");
    }
}
