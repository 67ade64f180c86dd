//! The run's journal, read as jobs.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::plan::TaskSet;
use crate::state::Event;
use crate::workflow::StageName;

/// What was about to be submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Unique; in the job's name and comment.
    pub token: String,
    pub stage: StageName,
    pub tasks: TaskSet,
    /// Task index = array index + offset.
    pub offset: u32,
}

/// What was submitted, and under which id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubmittedJob {
    pub intent: Intent,
    /// The job's id, an array's base id.
    pub job: String,
    /// Some of its tasks were handed to a later job, and are not in `intent` any more: how it ends as a whole says
    /// nothing of the others.
    pub partial: bool,
}

/// Every job of the run, oldest first.
pub fn jobs(events: &[Event]) -> Vec<SubmittedJob> {
    // A whole graph may be open at once.
    let mut open = HashMap::new();
    let mut jobs = Vec::new();
    for event in events {
        match event {
            Event::Submitting { token, .. } => {
                open.insert(token.as_str(), event);
            }
            Event::Submitted { token, job } => {
                if let Some(intent) = open.remove(token.as_str()).and_then(intent) {
                    jobs.push(SubmittedJob {
                        intent,
                        job: job.clone(),
                        partial: false,
                    });
                }
            }
            Event::Rerun { stage, tasks } => {
                for job in jobs.iter_mut().filter(|job: &&mut SubmittedJob| job.intent.stage == *stage) {
                    let kept = job.intent.tasks.difference(tasks);
                    job.partial |= kept != job.intent.tasks;
                    job.intent.tasks = kept;
                }
            }
            _ => {}
        }
    }
    jobs
}

/// The same by stage.
pub fn by_stage(jobs: Vec<SubmittedJob>) -> BTreeMap<StageName, Vec<SubmittedJob>> {
    let mut stages: BTreeMap<StageName, Vec<SubmittedJob>> = BTreeMap::new();
    for job in jobs {
        stages.entry(job.intent.stage.clone()).or_default().push(job);
    }
    stages
}

/// Intents whose outcome nobody wrote down, oldest first: they are being submitted, the process ended before it had done so, or
/// Slurm could not be asked.
pub fn intents(events: &[Event]) -> Vec<Intent> {
    let mut closed = HashSet::new();
    for event in events {
        if let Event::Submitted { token, .. } | Event::NotSubmitted { token, .. } = event {
            closed.insert(token.as_str());
        }
    }
    let intents = events.iter().filter_map(intent);
    intents.filter(|intent| !closed.contains(intent.token.as_str())).collect()
}

/// Whether the job called `job_name` must not do task `index` of `stage` any more: its submission was given up for lost
/// and made anew before it turned up after all, or the task was handed to a later job.
pub fn given_up(events: &[Event], job_name: &str, of: &StageName, index: u32) -> bool {
    let Some((_, own)) = job_name.rsplit_once('.') else {
        return false;
    };
    let mut begun = false;
    events.iter().any(|event| match event {
        Event::Submitting { token, .. } => {
            begun |= token == own;
            false
        }
        Event::NotSubmitted { token, .. } => token == own,
        Event::Rerun { stage, tasks } => begun && stage == of && tasks.contains(index),
        _ => false,
    })
}

fn intent(event: &Event) -> Option<Intent> {
    let Event::Submitting {
        token,
        stage,
        tasks,
        offset,
    } = event
    else {
        return None;
    };
    Some(Intent {
        token: token.clone(),
        stage: stage.clone(),
        tasks: tasks.clone(),
        offset: *offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submitting(token: &str) -> Event {
        Event::Submitting {
            token: token.into(),
            stage: StageName("call".into()),
            tasks: TaskSet::all(2),
            offset: 0,
        }
    }

    #[test]
    fn an_intent_is_open_until_its_outcome_is_known() {
        let mut events = vec![submitting("a"), submitting("b"), submitting("c")];
        events.push(Event::Submitted {
            token: "b".into(),
            job: "7".into(),
        });
        events.push(Event::NotSubmitted {
            token: "a".into(),
            message: "no".into(),
        });
        let open: Vec<String> = intents(&events).into_iter().map(|intent| intent.token).collect();
        assert_eq!(open, ["c"]);
        assert_eq!(jobs(&events).len(), 1);
        let call = StageName("call".into());
        assert!(given_up(&events, "name.with.dots.call.a", &call, 0));
        assert!(!given_up(&events, "name.call.b", &call, 0) && !given_up(&events, "a", &call, 0));
        events.push(Event::Rerun {
            stage: call.clone(),
            tasks: [1].into_iter().collect(),
        });
        assert!(given_up(&events, "name.call.b", &call, 1) && !given_up(&events, "name.call.b", &call, 0));
        let job = jobs(&events).remove(0);
        assert_eq!((job.intent.tasks, job.partial), (TaskSet::all(1), true));
    }
}
