//! Locks between processes: one file a piece of work, held with `flock`, freed by the kernel whatever becomes of the
//! holder. The files stay: removing one that another process waits for would give two processes the same lock.

use std::fs::{self, File, TryLockError};
use std::time::Duration;

use super::{Store, StoreError};

/// A held lock; dropping it lets the next one in.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

/// How often a waiting task looks again. Waiting in `flock` itself would hold a thread that cannot be interrupted.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Store {
    /// Takes the lock `key` (letters, digits, `-` and `.`) if it is free.
    pub fn try_lock(&self, key: &str) -> Result<Option<Guard>, StoreError> {
        let (file, path) = self.lock_file(key)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Guard { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(StoreError::at("lock", &path)(error)),
        }
    }

    /// Takes the lock `key`, blocking this thread until it is free; `waiting` is called once if it is not.
    pub fn lock(&self, key: &str, waiting: impl FnOnce()) -> Result<Guard, StoreError> {
        if let Some(guard) = self.try_lock(key)? {
            return Ok(guard);
        }
        waiting();
        let (file, path) = self.lock_file(key)?;
        file.lock().map_err(StoreError::at("lock", &path))?;
        Ok(Guard { _file: file })
    }

    /// As [`Store::lock`], for a task of a Tokio runtime: blocks no thread, and can be dropped while it waits.
    pub async fn lock_async(&self, key: &str, waiting: impl FnOnce()) -> Result<Guard, StoreError> {
        let mut waiting = Some(waiting);
        loop {
            if let Some(guard) = self.try_lock(key)? {
                return Ok(guard);
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn lock_file(&self, key: &str) -> Result<(File, std::path::PathBuf), StoreError> {
        let folder = self.locks();
        fs::create_dir_all(&folder).map_err(StoreError::at("create", &folder))?;
        let path = folder.join(key);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::at("open", &path))?;
        Ok((file, path))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_second_one_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let first = store.try_lock("a").unwrap().expect("free");
        assert!(store.try_lock("a").unwrap().is_none());
        assert!(store.try_lock("b").unwrap().is_some(), "another key is another lock");
        let (said, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| store.lock("a", || said.send(()).expect("the test listens")).map(drop));
            heard.recv().expect("the second says that it waits");
            drop(first);
            second.join().expect("no panic").expect("locked");
        });
    }

    #[tokio::test]
    async fn waiting_blocks_no_task() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let first = std::cell::Cell::new(store.try_lock("a").unwrap());
        // One thread: were the wait to block it, the callback's release would be the only way on.
        store.lock_async("a", || drop(first.take())).await.unwrap();
    }
}
