//! What there is to tell while something is fetched. Who renders it is the caller's affair.

/// Receives events, from any thread, often: it must be quick.
pub type Progress<'a> = &'a (dyn Fn(Event<'_>) + Sync);

/// Something happened to `what`, a name for people (`sha256:0123456789ab`, `reads.bam`).
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// A download begins, or goes on, with `done` bytes there already. `total`: if known.
    Started { what: &'a str, done: u64, total: Option<u64> },
    /// `done` bytes are there. It may become less: when a server cannot resume.
    Advanced { what: &'a str, done: u64 },
    /// All of it is there and verified.
    Finished { what: &'a str, size: u64 },
    /// It lies in the store already.
    Present { what: &'a str },
    /// All is there; it is being made into a root file system.
    Converting { what: &'a str },
    /// Another process does the same work.
    Waiting { what: &'a str },
    /// It failed and is tried again.
    Retrying {
        what: &'a str,
        why: &'a str,
        after: std::time::Duration,
    },
    /// A server answered something that the user should know about.
    Note { what: &'a str, text: &'a str },
}

/// Listens to nothing.
pub fn silent(_: Event<'_>) {}
