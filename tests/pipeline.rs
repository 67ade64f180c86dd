//! Whole pipelines from one file, end to end: the right answer here and on SLURM, once, whatever fails or is killed on the way.

pub mod apptainer;
mod counting;
mod failing;
mod killed_fetch;
mod killed_run;
mod na12878;
mod quickstart;
mod survival;

/// Who runs the tasks.
#[derive(Clone, Copy, Debug)]
enum Where {
    Here,
    Slurm,
}

impl Where {
    /// The command and its options; a workflow file follows.
    fn command(self) -> &'static [&'static str] {
        match self {
            Where::Here => &["run"],
            Where::Slurm => &["submit", "--wait"],
        }
    }
}
