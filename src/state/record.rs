//! Exit records: one slot of [`SLOT`] bytes a task in one file a stage, so that files grow with stages, not with tasks.
//!
//! Each task owns its slot. A job writes it under a byte-range lock with `O_DSYNC`: on NFS that keeps a client from writing
//! back its neighbours' slots of the same page, and shows it to other hosts. Where one process runs all of a stage's tasks
//! it keeps the file open, and what it writes is on disk a moment later ([`Records::keep_open`]).

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::plan::TaskSet;

/// Bytes a slot. Slots are lines: JSON, spaces, newline.
pub const SLOT: usize = 512;

/// How a task stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Started; no end was written yet.
    Running,
    Ok,
    /// The program's own exit status (128 + n for signal n).
    Failed {
        exit: i32,
    },
    /// The program ended well and a declared output is not there.
    OutputMissing,
    OutOfMemory,
    TimedOut,
    /// Something it needs did not end well; the program was not started.
    UpstreamFailed,
    Cancelled,
    /// dvrun itself could not do its part (image gone, bind missing, …).
    Broken,
}

impl Outcome {
    /// Whether it is an end, and no good one.
    pub fn is_bad(&self) -> bool {
        !matches!(self, Outcome::Ok | Outcome::Running)
    }
}

/// One task's latest attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub outcome: Outcome,
    /// From 0.
    pub attempt: u32,
    pub host: String,
    pub pid: u32,
    /// Slurm's job id (`123` or `123_4`), where it ran under Slurm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Unix milliseconds.
    pub started: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<i64>,
    /// CPU milliseconds, user and system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    /// Peak resident memory of the largest process, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Bytes read and written by system calls, of files and pipes alike (`rchar`, `wchar` of proc(5)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<u64>,
    /// One line for people; cut to fit the slot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Record {
    /// Of a first attempt that starts now: nothing is known yet of where it runs and of what it uses.
    pub fn new(outcome: Outcome) -> Record {
        Record {
            outcome,
            attempt: 0,
            host: String::new(),
            pid: 0,
            job: None,
            started: jiff::Timestamp::now().as_millisecond(),
            ended: None,
            cpu: None,
            memory: None,
            read: None,
            written: None,
            message: String::new(),
        }
    }
}

/// How long a record of a file that is kept open may be in memory alone while others are written.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// One stage's records.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    kept: Option<Kept>,
}

/// The file, open, and when it was last brought to disk.
#[derive(Debug)]
struct Kept {
    file: File,
    synced: Mutex<Instant>,
}

impl Records {
    pub fn new(path: PathBuf) -> Records {
        Records { path, kept: None }
    }

    /// For the one process that writes all of these records: [`Records::write`] returns before they are on disk, where they are
    /// a second later while more is written, and otherwise after [`Records::sync`]. The end of the process loses nothing;
    /// that of the machine does, and then a task runs again.
    ///
    /// # Errors
    /// A file that cannot be opened or made.
    pub fn keep_open(self) -> io::Result<Records> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        let kept = Kept {
            file,
            synced: Mutex::new(Instant::now()),
        };
        Ok(Records { kept: Some(kept), ..self })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings all that was written to disk.
    pub fn sync(&self) -> io::Result<()> {
        match &self.kept {
            Some(kept) => kept.file.sync_data(),
            None => File::open(&self.path)?.sync_data(),
        }
    }

    /// Writes `record` into slot `index`; it is on disk when this returns, unless the file is kept open.
    pub fn write(&self, index: u32, record: &Record) -> io::Result<()> {
        if let Some(kept) = &self.kept {
            return kept.write(index, record);
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DSYNC)
            .open(&self.path)?;
        let offset = u64::from(index) * SLOT as u64;
        let lock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: offset as i64,
            l_len: SLOT as i64,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLKW(&lock))?;
        file.write_all_at(&slot(record), offset)
    }

    /// Empties the slots `tasks`, as though these had never run.
    pub fn clear(&self, tasks: &TaskSet) -> io::Result<()> {
        let file = match OpenOptions::new().write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        for &(first, last) in tasks.ranges() {
            let start = u64::from(first) * SLOT as u64;
            let end = (u64::from(last) + 1) * SLOT as u64;
            if start < length {
                file.write_all_at(&vec![0; (end.min(length) - start) as usize], start)?;
            }
        }
        file.sync_data()
    }

    /// All slots up to `count`; `None` where nothing (or nothing readable) was written.
    pub fn read(&self, count: u32) -> io::Result<Vec<Option<Record>>> {
        let mut records = vec![None; count as usize];
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len() as usize;
        let mut bytes = vec![0; length.min(count as usize * SLOT)];
        file.read_exact_at(&mut bytes, 0)?;
        for (record, slot) in records.iter_mut().zip(bytes.chunks(SLOT)) {
            *record = parse(slot);
        }
        Ok(records)
    }

    /// Starts this file with the slots `keep` of another run's, byte for byte.
    ///
    /// # Errors
    /// Reading the other, or writing this one.
    pub fn inherit(&self, from: &Records, keep: &TaskSet) -> io::Result<()> {
        let Some((_, last)) = keep.ranges().last() else { return Ok(()) };
        let source = File::open(&from.path)?;
        let mut bytes = vec![0; (*last as usize + 1) * SLOT];
        for &(first, last) in keep.ranges() {
            let slots = first as usize * SLOT..(last as usize + 1) * SLOT;
            source.read_exact_at(&mut bytes[slots.clone()], slots.start as u64)?;
        }
        let file = File::create(&self.path)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()
    }

    /// One slot.
    pub fn read_one(&self, index: u32) -> io::Result<Option<Record>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = [0; SLOT];
        match file.read_exact_at(&mut bytes, u64::from(index) * SLOT as u64) {
            Ok(()) => Ok(parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Kept {
    fn write(&self, index: u32, record: &Record) -> io::Result<()> {
        self.file.write_all_at(&slot(record), u64::from(index) * SLOT as u64)?;
        // Whoever comes meanwhile leaves it to this one.
        if let Ok(mut synced) = self.synced.try_lock()
            && synced.elapsed() >= SYNC_EVERY
        {
            self.file.sync_data()?;
            *synced = Instant::now();
        }
        Ok(())
    }
}

/// A slot that was half written, or never, is no record.
fn parse(slot: &[u8]) -> Option<Record> {
    (slot.first() == Some(&b'{') && slot.last() == Some(&b'\n'))
        .then(|| serde_json::from_slice(slot).ok())
        .flatten()
}

fn slot(record: &Record) -> [u8; SLOT] {
    let mut text = serde_json::to_vec(record).expect("a record has no maps with odd keys");
    let mut record = Cow::Borrowed(record);
    while text.len() > SLOT - 1 {
        let record = record.to_mut();
        // A character takes one to six bytes of JSON: cut by the least that can be enough, until it fits.
        let characters = record.message.chars().count();
        if characters == 0 {
            record.host.truncate(record.host.floor_char_boundary(64));
            record.job = None;
        }
        let cut = (text.len() - (SLOT - 1)).div_ceil(6);
        record.message = record.message.chars().take(characters.saturating_sub(cut)).collect();
        text = serde_json::to_vec(record).expect("as above");
    }
    let mut slot = [b' '; SLOT];
    slot[..text.len()].copy_from_slice(&text);
    slot[SLOT - 1] = b'\n';
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> Record {
        Record {
            outcome: Outcome::Failed { exit: 3 },
            attempt: 1,
            host: "c1".into(),
            pid: 7,
            job: Some("12_3".into()),
            started: 1_700_000_000_000,
            ended: Some(1_700_000_001_000),
            cpu: Some(5),
            memory: Some(1 << 20),
            read: Some(7),
            written: Some(8),
            message: message.into(),
        }
    }

    #[test]
    fn slots_are_independent_and_survive_rereading() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().join("call"));
        assert_eq!(records.read(2).unwrap(), [None, None]);
        records.write(2, &record("third")).unwrap();
        records.write(0, &record("first")).unwrap();
        let read = records.read(4).unwrap();
        assert_eq!(read[0], Some(record("first")));
        assert_eq!(read[1], None);
        assert_eq!(read[2], Some(record("third")));
        assert_eq!(read[3], None);
        assert_eq!(records.read_one(2).unwrap(), Some(record("third")));
        assert_eq!(records.read_one(9).unwrap(), None);
        records.clear(&[2, 3, 9].into_iter().collect()).unwrap();
        assert_eq!(records.read(4).unwrap(), [Some(record("first")), None, None, None]);
    }

    #[test]
    fn a_file_kept_open_is_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("call");
        Records::new(path.clone()).write(1, &record("before")).unwrap();
        let kept = Records::new(path.clone()).keep_open().unwrap();
        kept.write(0, &record("first")).unwrap();
        let read: Vec<_> = Records::new(path).read(2).unwrap();
        assert_eq!(read, [Some(record("first")), Some(record("before"))]);
        kept.sync().unwrap();
        assert!(Records::new(folder.path().join("none/call")).keep_open().is_err());
    }

    #[test]
    fn a_later_run_inherits_only_what_it_keeps() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (Records::new(folder.path().join("old")), Records::new(folder.path().join("new")));
        for index in 0..4 {
            old.write(index, &record(&index.to_string())).unwrap();
        }
        new.inherit(&old, &[1, 3].into_iter().collect()).unwrap();
        let kept: Vec<_> = new
            .read(4)
            .unwrap()
            .into_iter()
            .map(|record| record.map(|record| record.message))
            .collect();
        assert_eq!(kept, [None, Some("1".into()), None, Some("3".into())]);
        assert!(new.inherit(&old, &TaskSet::all(9)).is_err());
    }

    #[test]
    fn a_long_message_is_cut_and_a_torn_slot_is_no_record() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().join("call"));
        records.write(0, &record(&"\u{1}é\"".repeat(400))).unwrap();
        let read = records.read_one(0).unwrap().unwrap();
        assert!(read.message.len() > 20 && read.message.len() < SLOT);
        let torn = &slot(&record("whole"))[..100];
        std::fs::write(records.path(), [torn, &[0; SLOT - 100]].concat()).unwrap();
        assert_eq!(records.read_one(0).unwrap(), None);
    }
}
