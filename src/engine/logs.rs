//! The two logs of a task, which are there while it runs, and afterwards where something was said.
//!
//! Most tasks say little. An empty log is not removed at once: the next task's may be the same file under another name. File
//! systems take several times as long to make a file and remove it again, and some look at each that went a moment ago before
//! they make one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::runtime;

/// The empty logs of tasks that are over.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Vec<Log>>);

/// One log, and where it lies.
#[derive(Debug)]
pub(super) struct Log {
    pub path: PathBuf,
    pub file: File,
}

impl Spares {
    fn logs(&self) -> MutexGuard<'_, Vec<Log>> {
        // Nobody panics while holding it, and each change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty log at `path`, in the place of what is there.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn make(&self, path: &Path) -> io::Result<Log> {
        let mut logs = self.logs();
        // The one of an earlier attempt at the same task is not to be taken for another's meanwhile.
        let own = logs.iter().position(|log| log.path == path);
        let spare = own.map(|own| logs.swap_remove(own)).or_else(|| logs.pop());
        let renamed = spare.and_then(|spare| spare.become_log_at(path));
        drop(logs);
        renamed.map_or_else(|| Log::create(path), Ok)
    }

    /// Keeps an empty log of a task that ended well for another one. Others lie where they are.
    ///
    /// # Errors
    /// A file that cannot be looked at.
    pub fn keep(&self, log: Log) -> io::Result<()> {
        if log.is_empty()? {
            let Log { path, file } = log;
            // Opened anew: what a program left behind holds is the other opening, and so can be told.
            drop(file);
            match File::options().write(true).open(&path) {
                Ok(file) => self.logs().push(Log { path, file }),
                // Somebody has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes all.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        self.logs().drain(..).try_for_each(Log::remove_if_empty)
    }
}

impl Log {
    /// An empty log at `path`, in the place of what is there.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn create(path: &Path) -> io::Result<Log> {
        let file = match (File::create(path), path.parent()) {
            // The first of a stage's.
            (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder)?;
                File::create(path)?
            }
            (created, _) => created?,
        };
        Ok(Log {
            path: path.to_owned(),
            file,
        })
    }

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() == 0)
    }

    /// A hundred thousand empty files help nobody.
    ///
    /// # Errors
    /// A file that cannot be looked at or removed.
    pub fn remove_if_empty(self) -> io::Result<()> {
        if !self.is_empty()? {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives it another name; `None` where that cannot be, or where somebody still reads it under the old name or writes to it:
    /// nothing is at `path` then, or what was there before.
    fn become_log_at(self, path: &Path) -> Option<Log> {
        if path != self.path && with_folder(path, || fs::rename(&self.path, path)).is_err() {
            fs::remove_file(&self.path).unwrap_or_default();
            return None;
        }
        // Only now: nobody finds it by the old name any more.
        if self.is_as_new().unwrap_or(false) && runtime::is_open_here_alone(&self.file) {
            return Some(Log {
                path: path.to_owned(),
                ..self
            });
        }
        // Else it is made anew, with an error that says why not.
        fs::remove_file(path).unwrap_or_default();
        None
    }

    fn is_as_new(&self) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        Ok(metadata.len() == 0 && metadata.nlink() == 1)
    }
}

/// Does `what` to `path`, whose folder is there for all but the first of a stage's tasks.
fn with_folder<T>(path: &Path, what: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match (what(), path.parent()) {
        (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder)?;
            what()
        }
        (done, _) => done,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn an_empty_log_becomes_that_of_another_task() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join("stage").join(name);
        let spares = Spares::default();
        let inode = |log: &Log| log.file.metadata().unwrap().ino();
        let first = spares.make(&at("0.out")).unwrap();
        let same = inode(&first);
        spares.keep(first).unwrap();
        let mut second = spares.make(&at("1.out")).unwrap();
        assert!(inode(&second) == same && !at("0.out").exists());
        second.file.write_all(b"second").unwrap();
        spares.keep(second).unwrap();
        let third = spares.make(&at("2.out")).unwrap();
        assert_eq!((text(&at("1.out")).as_str(), text(&at("2.out")).as_str()), ("second", ""));
        spares.keep(third).unwrap();
        // The first of another stage.
        let other = spares.make(&folder.path().join("other/0.out")).unwrap();
        spares.keep(other).unwrap();
        assert!(!at("2.out").exists() && folder.path().join("other/0.out").exists());
        spares.remove().unwrap();
        assert!(!folder.path().join("other/0.out").exists() && at("1.out").exists());
    }

    #[test]
    fn a_log_that_somebody_has_open_stays_that_of_its_task() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let spares = Spares::default();
        // What a program left behind writes to, and what somebody reads.
        let writer = spares.make(&at("0.out")).unwrap();
        let mut left = writer.file.try_clone().unwrap();
        spares.keep(writer).unwrap();
        let reader = spares.make(&at("1.out")).unwrap();
        let mut second = reader.file.try_clone().unwrap();
        left.write_all(b"late").unwrap();
        second.write_all(b"one's").unwrap();
        assert_eq!(text(&at("1.out")), "one's");
        fs::write(at("1.out"), "").unwrap();
        drop(second);
        let mut read = File::open(at("1.out")).unwrap();
        spares.keep(reader).unwrap();
        let mut third = spares.make(&at("2.out")).unwrap();
        third.file.write_all(b"two's").unwrap();
        let mut seen = String::new();
        read.read_to_string(&mut seen).unwrap();
        assert_eq!((seen.as_str(), text(&at("2.out")).as_str()), ("", "two's"));
    }

    #[test]
    fn a_further_attempt_has_a_log_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let spares = Spares::default();
        for name in ["0.out", "1.out"] {
            let log = File::create(at(name)).unwrap();
            spares.keep(Log { path: at(name), file: log }).unwrap();
        }
        let mut again = spares.make(&at("0.out")).unwrap();
        again.file.write_all(b"again").unwrap();
        let mut other = spares.make(&at("2.out")).unwrap();
        other.file.write_all(b"other").unwrap();
        assert_eq!((text(&at("0.out")).as_str(), text(&at("2.out")).as_str()), ("again", "other"));
        // Somebody has removed what was kept.
        spares
            .keep(Log {
                path: at("3.out"),
                file: File::create(at("3.out")).unwrap(),
            })
            .unwrap();
        fs::remove_file(at("3.out")).unwrap();
        let mut last = spares.make(&at("3.out")).unwrap();
        last.file.write_all(b"last").unwrap();
        assert_eq!(text(&at("3.out")), "last");
    }
}
