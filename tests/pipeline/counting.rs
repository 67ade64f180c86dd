//! A workflow that leaves a line for each time a task ran, stops where it is told to, and whose third shard may be made to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Where;
use crate::support::{Sandbox, checkout};

/// What `work/merged` holds at the end.
pub const MERGED: &str = "shard 0\nshard 1\nshard 2\nshard 3\n";

/// Stages `first` → `call` (four tasks) → `merge`, in a sandbox.
pub struct Counting {
    pub sandbox: Sandbox,
    work: PathBuf,
}

impl Counting {
    pub fn new() -> Counting {
        let sandbox = Sandbox::new();
        let image = checkout().join("workflows/quickstart/image");
        let text = TEXT.replace("IMAGE", &image.display().to_string());
        let file = sandbox.write("counting/pipeline.yaml", text);
        let work = file.with_file_name("work");
        fs::create_dir(&work).expect("the sandbox is writable");
        Counting { sandbox, work }
    }

    /// `run` or `submit --wait` of the workflow.
    pub fn start(&self, place: Where) -> Command {
        let mut command = self.dvrun(place.command());
        command.arg("pipeline.yaml");
        command
    }

    /// Any command, in the workflow's folder.
    pub fn dvrun(&self, words: &[&str]) -> Command {
        let mut command = self.sandbox.dvrun();
        command.current_dir(self.folder()).args(words);
        command
    }

    pub fn folder(&self) -> &Path {
        self.work.parent().expect("work lies in the workflow's folder")
    }

    /// How often the task was started: `first`, `call-2`, `merge`.
    pub fn runs(&self, task: &str) -> usize {
        match fs::read_to_string(self.work.join(format!("ran-{task}"))) {
            Ok(text) => text.lines().count(),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
                0
            }
        }
    }

    /// How often each task was started: the first, the four shards, the merge.
    pub fn all_runs(&self) -> [usize; 6] {
        ["first", "call-0", "call-1", "call-2", "call-3", "merge"].map(|task| self.runs(task))
    }

    /// Makes a file that tasks look for: `fail`, or `hold-TASK`.
    pub fn set(&self, name: &str) {
        fs::write(self.work.join(name), "").expect("the sandbox is writable");
    }

    pub fn unset(&self, name: &str) {
        fs::remove_file(self.work.join(name)).expect("it was set");
    }

    pub fn merged(&self) -> String {
        self.sandbox.read("counting/work/merged")
    }
}

const TEXT: &str = r#"
version: 1
name: counting
images:
  toolbox: "oci:IMAGE:1.0"
defaults:
  image: toolbox
  binds: ["./work:/work"]
  resources: {cpus: 1, memory: 100M, time: 10m}
stages:
  first:
    run: |
      echo started >> /work/ran-first
      while [ -e /work/hold-first ]; do sleep 0.05; done
      echo shard > /work/word
    outputs: [work/word]
  call:
    needs: [first]
    array: {count: 4}
    run: |
      i=${{ array.index }}
      echo started >> /work/ran-call-$i
      while [ -e /work/hold-call-$i ]; do sleep 0.05; done
      if [ $i = 2 ] && [ -e /work/fail ]; then echo "shard $i cannot" >&2; exit 3; fi
      echo "$(cat /work/word) $i" > /work/part-$i
    outputs: ["work/part-${{ array.index }}"]
  merge:
    needs: [call]
    run: |
      echo started >> /work/ran-merge
      while [ -e /work/hold-merge ]; do sleep 0.05; done
      cat /work/part-* > /work/merged
    outputs: [work/merged]
"#;
