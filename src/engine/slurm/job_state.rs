//! The states of jobs, as enum and in words.

use std::fmt;

use serde::Serialize;

/// How Slurm says that a job (or a task of an array) stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum JobState {
    /// `reason` as Slurm writes it; `start` an estimate, local time of the cluster.
    Pending {
        reason: String,
        start: Option<String>,
    },
    Running,
    /// Its processes ended; Slurm cleans up.
    Completing,
    Suspended,
    Completed,
    /// Exit status, where it is known.
    Failed {
        exit: Option<i32>,
    },
    /// By whom (a user id or a name), where it is known.
    Cancelled {
        by: Option<String>,
    },
    TimedOut,
    OutOfMemory,
    NodeFail,
    Preempted,
    /// A word that this version does not know.
    Unknown(String),
}

impl JobState {
    /// From the long word of `squeue -o %T` or `sacct --format=State`, with what stands behind it.
    pub fn parse(text: &str) -> JobState {
        let mut words = text.split_whitespace();
        match words.next().unwrap_or_default() {
            "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "SPECIAL_EXIT" | "RESV_DEL_HOLD" => JobState::Pending {
                reason: String::new(),
                start: None,
            },
            "RUNNING" | "CONFIGURING" | "POWER_UP_NODE" | "RESIZING" | "SIGNALING" | "STAGE_OUT" => JobState::Running,
            // Since 25.11: it ended, and is looked at whether it runs again at once.
            "COMPLETING" | "EXPEDITING" => JobState::Completing,
            "SUSPENDED" | "STOPPED" => JobState::Suspended,
            "COMPLETED" => JobState::Completed,
            "FAILED" | "LAUNCH_FAILED" | "RECONFIG_FAIL" => JobState::Failed { exit: None },
            "CANCELLED" => JobState::Cancelled {
                by: match (words.next(), words.next()) {
                    (Some("by"), Some(who)) => Some(who.to_owned()),
                    _ => None,
                },
            },
            "TIMEOUT" | "DEADLINE" => JobState::TimedOut,
            "OUT_OF_MEMORY" => JobState::OutOfMemory,
            "NODE_FAIL" | "BOOT_FAIL" => JobState::NodeFail,
            "PREEMPTED" => JobState::Preempted,
            _ => JobState::Unknown(text.trim().to_owned()),
        }
    }

    /// Whether it will go on: queued, running, or not yet gone. An unknown word counts as such.
    pub fn is_active(&self) -> bool {
        matches!(
            self,
            JobState::Pending { .. } | JobState::Running | JobState::Completing | JobState::Suspended | JobState::Unknown(_)
        )
    }

    /// Whether a task that wrote an end is to run once more, or does: Slurm puts jobs back into the queue for administrators, more
    /// important jobs and lost nodes, also after what ran in them has been told to stop and has said so.
    pub fn runs_again(&self) -> bool {
        self.is_active() && !self.never_runs() && *self != JobState::Completing
    }

    /// Whether it waits for other jobs.
    pub fn waits_for_another(&self) -> bool {
        matches!(self, JobState::Pending { reason, .. } if reason == "Dependency")
    }

    /// Whether it waits for something that cannot happen any more.
    pub fn never_runs(&self) -> bool {
        matches!(self, JobState::Pending { reason, .. } if reason == "DependencyNeverSatisfied")
    }
}

/// In plain words.
impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobState::Pending { reason, .. } => write!(f, "waits: {}", reason_in_words(reason)),
            JobState::Running => f.write_str("runs"),
            JobState::Completing => f.write_str("has ended and is being cleaned up"),
            JobState::Suspended => f.write_str("is suspended"),
            JobState::Completed => f.write_str("ended well"),
            JobState::Failed { exit: Some(exit) } => write!(f, "failed with status {exit}"),
            JobState::Failed { exit: None } => f.write_str("failed"),
            JobState::Cancelled { by: Some(by) } => write!(f, "was cancelled by user {by}"),
            JobState::Cancelled { by: None } => f.write_str("was cancelled"),
            JobState::TimedOut => f.write_str("reached its time limit"),
            JobState::OutOfMemory => f.write_str("ran out of memory"),
            JobState::NodeFail => f.write_str("its node failed"),
            JobState::Preempted => f.write_str("made room for another job"),
            JobState::Unknown(word) => write!(f, "Slurm calls its state `{word}`"),
        }
    }
}

/// Why a job waits, in plain words; Slurm's own word where it is a rare one.
pub fn reason_in_words(reason: &str) -> String {
    let words = match reason {
        "" | "None" => "waiting to be looked at by the scheduler",
        "Dependency" => "waiting for what it needs",
        "DependencyNeverSatisfied" => "never runs: what it needs failed",
        "Priority" => "other jobs go first",
        "Resources" => "waiting for free cpus, memory or nodes",
        "JobArrayTaskLimit" => "as many tasks of its array run as may",
        "JobHeldUser" => "held by its user (`dvrun release` lets it go)",
        "JobHeldAdmin" => "held by an administrator",
        "BeginTime" => "its start time has not come (a job that runs again waits two minutes)",
        "Licenses" => "waiting for licences",
        "Reservation" => "waiting for its reservation",
        "PartitionDown" => "its partition is down",
        "PartitionInactive" => "its partition takes no jobs to run",
        "PartitionTimeLimit" => "asks for more time than its partition gives",
        "PartitionNodeLimit" => "asks for more nodes than its partition gives",
        "InvalidAccount" => "its account is not valid",
        "InvalidQOS" => "its QOS is not valid",
        "JobHoldMaxRequeue" => "started too often without luck, held",
        "launch failed requeued held" | "launch_failed_requeued_held" => "could not be started on its node, held",
        "Cleaning" => "its last attempt is being cleaned up",
        _ if reason.starts_with("ReqNodeNotAvail") => "a node that it asks for is not available",
        _ if reason.starts_with("QOS") => return format!("a limit of its QOS is reached ({reason})"),
        _ if reason.starts_with("Assoc") => return format!("a limit of its account is reached ({reason})"),
        _ if reason.starts_with("Nodes required for job are") => "the nodes that it asks for are down, drained or reserved",
        _ => return format!("waiting ({reason})"),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_with_more_behind_them_and_words_from_the_future() {
        assert_eq!(
            JobState::parse("CANCELLED by 1234"),
            JobState::Cancelled { by: Some("1234".into()) }
        );
        assert_eq!(JobState::parse("CANCELLED"), JobState::Cancelled { by: None });
        assert_eq!(JobState::parse("OUT_OF_MEMORY"), JobState::OutOfMemory);
        // Another cluster of a federation has it: this one cannot tell how it goes on.
        assert!(matches!(JobState::parse("REVOKED"), JobState::Unknown(_)));
        assert_eq!(JobState::parse("EXPEDITING"), JobState::Completing);
        // A column cut short is not guessed at.
        assert_eq!(JobState::parse("OUT_OF_ME+"), JobState::Unknown("OUT_OF_ME+".into()));
        assert!(JobState::parse("HIBERNATING").is_active());
        assert!(!JobState::parse("NODE_FAIL").is_active());
    }

    #[test]
    fn a_reason_that_nobody_knows_is_shown_as_it_is() {
        assert_eq!(reason_in_words("MoonPhase"), "waiting (MoonPhase)");
        assert_eq!(
            reason_in_words("QOSMaxJobsPerUserLimit"),
            "a limit of its QOS is reached (QOSMaxJobsPerUserLimit)"
        );
    }
}
