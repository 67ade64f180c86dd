//! The journal: intent before effect, so that any crash can be reconciled.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::TaskSet;
use crate::workflow::StageName;

/// One line of `journal.jsonl`. New kinds may be added; a reader skips what it does not know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// About to call `sbatch`. `token` is in the job's name and comment.
    Submitting {
        token: String,
        stage: StageName,
        tasks: TaskSet,
        /// Task index = array index + offset.
        #[serde(default)]
        offset: u32,
    },
    /// `sbatch` gave this job id.
    Submitted {
        token: String,
        job: String,
    },
    /// It is certain that no job with this token exists.
    NotSubmitted {
        token: String,
        message: String,
    },
    /// `scancel` is about to be called for these jobs, by a user's wish.
    Cancelling {
        jobs: Vec<String>,
    },
    /// These tasks are to run again: what was submitted for them before counts no more.
    Rerun {
        stage: StageName,
        tasks: TaskSet,
    },
    /// A local run began or ended in the process `pid`.
    Started {
        pid: u32,
        host: String,
    },
    Ended {
        ok: bool,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Serialize, Deserialize)]
struct Line<E> {
    /// Unix milliseconds.
    at: i64,
    #[serde(flatten)]
    event: E,
}

/// An append-only file of [`Event`]s.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens for appending. A last line cut short by a crash is ended first, so that the next one stands alone.
    pub fn open(path: &Path) -> io::Result<Journal> {
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        if std::fs::read(path)?.last().is_some_and(|&byte| byte != b'\n') {
            file.write_all(b"\n")?;
        }
        Ok(Journal {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends; the line is on disk when this returns, and so is all that was noted before it.
    pub fn append(&mut self, event: &Event) -> io::Result<()> {
        self.note(event)?;
        self.file.sync_data()
    }

    /// Appends what can be found out again should the machine go down: the line survives this process, and is on disk after
    /// the next [`Journal::append`].
    pub fn note(&mut self, event: &Event) -> io::Result<()> {
        let at = jiff::Timestamp::now().as_millisecond();
        let mut line = serde_json::to_vec(&Line { at, event })?;
        line.push(b'\n');
        self.file.write_all(&line)
    }

    /// Brings all that was noted to disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// All events, oldest first. Lines that a crash cut short are left out.
    pub fn read(path: &Path) -> io::Result<Vec<Event>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut events = Vec::new();
        for line in BufReader::new(file).split(b'\n') {
            if let Ok(line) = serde_json::from_slice::<Line<Event>>(&line?) {
                events.push(line.event);
            }
        }
        Ok(events)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cut_short_by_a_crash_loses_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let first = Event::Submitting {
            token: "t1".into(),
            stage: StageName("call".into()),
            tasks: TaskSet::all(3),
            offset: 0,
        };
        Journal::open(&path).unwrap().append(&first).unwrap();
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(br#"{"at":1,"event":"subm"#);
        std::fs::write(&path, torn).unwrap();
        let second = Event::Submitted {
            token: "t1".into(),
            job: "42".into(),
        };
        Journal::open(&path).unwrap().append(&second).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), [first, second]);
    }

    #[test]
    fn a_kind_from_a_later_version_is_skipped_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        std::fs::write(&path, "{\"at\":1,\"event\":\"rescheduled\",\"why\":\"x\"}\n").unwrap();
        assert_eq!(Journal::read(&path).unwrap(), [Event::Unknown]);
    }
}
