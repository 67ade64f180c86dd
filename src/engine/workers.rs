//! The threads that local tasks run on: as many as there ever were tasks at once.
//!
//! Each lives to the end of the run, as a program dies with the thread that started it, and so with this process. A worker
//! whose task has ended asks the scheduler itself what is next: handing that over to another thread, and the next task back,
//! takes as long as a short program. It heeds wishes to stop before it asks. The thread that the run was called on sees to
//! them while nothing ends, and to time limits.

use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use super::apart::Apart;
use super::graph::Ready;
use super::local::{Scheduler, Stop};
use super::task::{self, Numbered, Work};
use super::watch::Watch;
use crate::plan::StagePlan;
use crate::state::{Record, Records};

/// How soon a wish to stop is seen while no task ends, and a time limit that was reached.
const TICK: Duration = Duration::from_millis(50);

/// A task for a worker.
pub(super) struct Given<'a> {
    pub task: Ready,
    pub stage: &'a StagePlan,
    /// Where it runs, if not on a worker's own thread.
    pub apart: Option<Apart>,
    /// The numbers of its own.
    pub gpus: Vec<u32>,
    pub records: Arc<Records>,
    pub watch: Arc<Watch>,
}

/// The workers and what they share.
pub(super) struct Workers<'a> {
    work: Work<'a>,
    desk: Mutex<Desk<'a>>,
    /// There is a task for a worker, or there will be none.
    given: Condvar,
    /// Nothing runs any more.
    over: Condvar,
}

struct Desk<'a> {
    scheduler: Scheduler<'a>,
    wishes: Receiver<Stop>,
    /// Workers that wait for a task, or are about to look for one.
    idle: usize,
    over: bool,
}

impl Desk<'_> {
    /// Hands on the wishes to stop that have come.
    fn heed(&mut self) {
        while let Ok(wish) = self.wishes.try_recv() {
            self.scheduler.heed(wish);
        }
    }
}

impl<'a> Workers<'a> {
    /// `wishes` are heeded as they come.
    pub fn new(work: Work<'a>, scheduler: Scheduler<'a>, wishes: Receiver<Stop>) -> Workers<'a> {
        Workers {
            work,
            desk: Mutex::new(Desk {
                scheduler,
                wishes,
                idle: 0,
                over: false,
            }),
            given: Condvar::new(),
            over: Condvar::new(),
        }
    }

    /// Runs all that may run, until nothing does.
    pub fn run(self) -> Scheduler<'a> {
        let workers = &self;
        thread::scope(|scope| {
            let mut desk = workers.desk();
            desk.scheduler.start_what_fits();
            workers.employ(scope, &mut desk, 0);
            loop {
                desk.heed();
                if desk.scheduler.is_idle() {
                    break;
                }
                desk.scheduler.look();
                (desk, _) = workers.over.wait_timeout(desk, TICK).unwrap_or_else(PoisonError::into_inner);
            }
            desk.over = true;
            workers.given.notify_all();
        });
        self.desk.into_inner().unwrap_or_else(PoisonError::into_inner).scheduler
    }

    fn desk(&self) -> MutexGuard<'_, Desk<'a>> {
        // Who panics while holding it ends the process.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that there is a worker for each task that is given, of which the caller takes `own`.
    fn employ<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, desk: &mut Desk<'a>, own: usize) {
        let wanted = desk.scheduler.given.len().saturating_sub(own);
        (0..wanted.min(desk.idle)).for_each(|_| self.given.notify_one());
        while desk.idle < wanted {
            desk.idle += 1;
            scope.spawn(move || self.life(scope));
        }
    }

    /// A worker's life.
    fn life<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let mut desk = self.desk();
        desk.idle -= 1;
        loop {
            if let Some(given) = desk.scheduler.given.pop_front() {
                drop(desk);
                let task = given.task;
                let record = self.work.through(given);
                desk = self.desk();
                desk.heed();
                desk.scheduler.ended(task, record);
                self.employ(scope, &mut desk, 1);
                if desk.scheduler.is_idle() {
                    self.over.notify_one();
                }
            } else if desk.over {
                break;
            } else {
                desk.idle += 1;
                desk = self.given.wait(desk).unwrap_or_else(PoisonError::into_inner);
                desk.idle -= 1;
            }
        }
    }
}

impl Work<'_> {
    /// A task from its start to its end, both of which are in its record then.
    fn through(self, given: Given<'_>) -> io::Result<Record> {
        let Given {
            task,
            stage,
            apart,
            gpus,
            records,
            watch,
        } = given;
        let numbered = Numbered {
            index: task.index,
            attempt: task.attempt,
        };
        let gpus = self.place.visible(apart.as_ref(), &gpus);
        let record = match apart {
            Some(apart) => {
                let call = apart.call(self.run.path(), &stage.stage.name, numbered, self.place, &gpus);
                task::apart(self, numbered, &records, &apart, &call, &watch)
            }
            None if gpus.is_empty() => task::once(self, &stage.stage, numbered, &records, &watch),
            None => {
                let place = self.place.with_variables(&gpus);
                task::once(Work { place: &place, ..self }, &stage.stage, numbered, &records, &watch)
            }
        }?;
        records.write(task.index, &record)?;
        Ok(record)
    }
}
