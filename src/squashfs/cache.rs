//! What was read lately, bounded in bytes.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::SquashfsError;

/// Things by key. Two threads that want the same thing make it once.
pub(super) struct Cache<K, V> {
    inner: Mutex<Inner<K, V>>,
    /// In bytes. One thing that is larger is kept until the next one comes.
    limit: usize,
}

struct Inner<K, V> {
    slots: HashMap<K, Kept<V>>,
    /// By last use.
    order: BTreeMap<u64, K>,
    clock: u64,
    used: usize,
}

struct Kept<V> {
    slot: Arc<Mutex<Option<Arc<V>>>>,
    last: u64,
    size: usize,
}

impl<K: Hash + Eq + Copy, V> Cache<K, V> {
    pub(super) fn new(limit: usize) -> Cache<K, V> {
        let inner = Inner {
            slots: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            used: 0,
        };
        Cache {
            inner: Mutex::new(inner),
            limit,
        }
    }

    /// What is kept under `key`, or what `make` gives with its size in bytes.
    pub(super) fn get(&self, key: K, make: impl FnOnce() -> Result<(V, usize), SquashfsError>) -> Result<Arc<V>, SquashfsError> {
        let slot = locked(&self.inner).touch(key);
        let mut place = locked(&slot);
        if let Some(value) = &*place {
            return Ok(Arc::clone(value));
        }
        match make() {
            Ok((value, size)) => {
                let value = Arc::new(value);
                *place = Some(Arc::clone(&value));
                drop(place);
                locked(&self.inner).grown(key, &slot, size, self.limit);
                Ok(value)
            }
            Err(error) => {
                drop(place);
                locked(&self.inner).forget(key);
                Err(error)
            }
        }
    }

    /// What is kept under `key`, if it is there already.
    pub(super) fn peek(&self, key: K) -> Option<Arc<V>> {
        let slot = {
            let mut inner = locked(&self.inner);
            if !inner.slots.contains_key(&key) {
                return None;
            }
            inner.touch(key)
        };
        // Not while another thread is making it.
        slot.try_lock().ok()?.clone()
    }
}

impl<K: Hash + Eq + Copy, V> Inner<K, V> {
    fn touch(&mut self, key: K) -> Arc<Mutex<Option<Arc<V>>>> {
        self.clock += 1;
        let now = self.clock;
        let kept = self.slots.entry(key).or_insert_with(|| Kept {
            slot: Arc::default(),
            last: now,
            size: 0,
        });
        self.order.remove(&kept.last);
        kept.last = now;
        self.order.insert(now, key);
        Arc::clone(&kept.slot)
    }

    /// Counts what was made in `slot`, and lets go of what was not used for longest.
    fn grown(&mut self, key: K, slot: &Arc<Mutex<Option<Arc<V>>>>, size: usize, limit: usize) {
        match self.slots.get_mut(&key) {
            Some(kept) if Arc::ptr_eq(&kept.slot, slot) => {
                self.used += size - kept.size.min(size);
                kept.size = size;
            }
            // Forgotten while it was being made.
            _ => return,
        }
        while self.used > limit {
            match self.order.first_key_value() {
                Some((_, &oldest)) if oldest != key => self.forget(oldest),
                _ => break,
            }
        }
    }

    fn forget(&mut self, key: K) {
        if let Some(kept) = self.slots.remove(&key) {
            self.order.remove(&kept.last);
            self.used -= kept.size;
        }
    }
}

/// What a panicking thread left is whole: every change under the lock is.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged() -> SquashfsError {
        SquashfsError::damaged("a test", 0)
    }

    #[test]
    fn the_least_used_goes_first() {
        let cache: Cache<u64, u64> = Cache::new(3);
        for key in [1, 2, 3, 1, 4] {
            assert_eq!(*cache.get(key, || Ok((key, 1))).unwrap(), key);
        }
        let here = |key| cache.peek(key).is_some();
        assert!(here(1) && !here(2) && here(3) && here(4));
        assert_eq!(*cache.get(1, || Err(damaged())).unwrap(), 1, "it is not made again");
        assert_eq!(locked(&cache.inner).used, 3);
    }

    #[test]
    fn failures_are_not_kept_and_giants_only_until_the_next() {
        let cache: Cache<u64, u64> = Cache::new(3);
        assert!(cache.get(1, || Err(damaged())).is_err());
        assert_eq!(*cache.get(1, || Ok((7, 100))).unwrap(), 7);
        assert!(cache.peek(1).is_some());
        cache.get(2, || Ok((8, 1))).unwrap();
        assert!(cache.peek(1).is_none() && cache.peek(2).is_some());
        assert_eq!(locked(&cache.inner).used, 1);
    }

    #[test]
    fn threads_make_a_thing_once() {
        let cache: Cache<u64, u64> = Cache::new(3);
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    cache.get(1, || {
                        made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        Ok((1, 1))
                    })
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
