//! The journal of a submission.
//!
//! What is meant to be submitted is written before the first job is, and the disk is waited for once: between two jobs that
//! would take as long as a call of `sbatch`. Ids need no waiting at all: one that the machine's end takes along is found again
//! by its token.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use super::journal::{Intent, SubmittedJob};
use super::submit::SubmitError;
use crate::state::{Event, Journal};

/// How long ids may be in memory alone while others come.
const SYNC_EVERY: Duration = Duration::from_secs(1);

pub struct Noted {
    journal: Journal,
    synced: Instant,
    /// The tokens of what was not tried yet.
    untried: BTreeSet<String>,
}

impl Noted {
    pub fn new(journal: Journal) -> Noted {
        Noted {
            journal,
            synced: Instant::now(),
            untried: BTreeSet::new(),
        }
    }

    /// Writes down what is about to be submitted: it is on disk when this returns.
    ///
    /// # Errors
    /// As all that is written here, those of the journal.
    pub fn intend<'i>(&mut self, intents: impl IntoIterator<Item = &'i Intent>) -> Result<(), SubmitError> {
        for intent in intents {
            self.note(&intent.event())?;
            self.untried.insert(intent.token.clone());
        }
        self.sync()
    }

    /// `sbatch` is called for this one now.
    pub fn tries(&mut self, intent: &Intent) {
        self.untried.remove(&intent.token);
    }

    pub fn submitted(&mut self, intent: Intent, job: String) -> Result<SubmittedJob, SubmitError> {
        self.note(&Event::Submitted {
            token: intent.token.clone(),
            job: job.clone(),
        })?;
        if self.synced.elapsed() >= SYNC_EVERY {
            self.sync()?;
        }
        Ok(SubmittedJob {
            intent,
            job,
            partial: false,
        })
    }

    pub fn not_submitted(&mut self, intent: &Intent, message: String) -> Result<(), SubmitError> {
        self.note(&Event::NotSubmitted {
            token: intent.token.clone(),
            message,
        })?;
        self.sync()
    }

    /// Says of what was never tried that it was not, and brings all to disk.
    pub fn close(mut self) -> Result<(), SubmitError> {
        for token in std::mem::take(&mut self.untried) {
            let message = "the submission stopped before it".to_owned();
            self.note(&Event::NotSubmitted { token, message })?;
        }
        self.sync()
    }

    fn note(&mut self, event: &Event) -> Result<(), SubmitError> {
        let noted = self.journal.note(event);
        noted.map_err(|source| self.failed(source))
    }

    fn sync(&mut self) -> Result<(), SubmitError> {
        self.synced = Instant::now();
        let synced = self.journal.sync();
        synced.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> SubmitError {
        SubmitError::Journal {
            path: self.journal.path().to_owned(),
            source,
        }
    }
}
