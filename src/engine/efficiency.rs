//! What tasks used, beside what their stage asks for.

use serde::Serialize;

use super::status::StatusError;
use crate::plan::Plan;
use crate::state::{Outcome, Record, RunDir};
use crate::workflow::units::{Bytes, Seconds};
use crate::workflow::{Resources, StageName};

/// A stage's tasks that ended well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageUse {
    pub stage: StageName,
    pub tasks: u32,
    pub asked: Resources,
    /// Milliseconds; of the slowest, and of all together.
    pub wall_max: u64,
    pub wall_sum: u64,
    /// Milliseconds of cpu time of all together.
    pub cpu_sum: u64,
    /// Bytes, of the largest process of the hungriest task.
    pub memory_max: u64,
    /// Bytes read and written by all together.
    pub read_sum: u64,
    pub written_sum: u64,
    /// What would have been enough, with room: `None` where what is asked for is right, or nothing is known.
    pub memory: Option<Bytes>,
    pub time: Option<Seconds>,
    pub cpus: Option<u32>,
}

impl StageUse {
    /// The share of the cpus asked for that was used, from 0 to 1 (above it where more were used than asked for).
    pub fn cpu_share(&self) -> f64 {
        let available = self.wall_sum as f64 * f64::from(self.asked.cpus.max(1));
        if available > 0.0 { self.cpu_sum as f64 / available } else { 0.0 }
    }
}

/// What each stage of the run used, of which some task ended well.
///
/// # Errors
/// Records that cannot be read.
pub fn efficiency(run: &RunDir, plan: &Plan) -> Result<Vec<StageUse>, StatusError> {
    let mut uses = Vec::new();
    for (name, planned) in &plan.stages {
        let records = run.records(name);
        let read = records.read(planned.stage.tasks()).map_err(|source| StatusError::Read {
            path: records.path().to_owned(),
            source,
        })?;
        let well: Vec<Record> = read.into_iter().flatten().filter(|record| record.outcome == Outcome::Ok).collect();
        if !well.is_empty() {
            uses.push(stage_use(name, &planned.stage.resources, &well));
        }
    }
    Ok(uses)
}

fn stage_use(stage: &StageName, asked: &Resources, well: &[Record]) -> StageUse {
    let wall = |record: &Record| record.ended.map_or(0, |ended| ended.saturating_sub(record.started).max(0) as u64);
    let mut used = StageUse {
        stage: stage.clone(),
        tasks: well.len() as u32,
        asked: asked.clone(),
        wall_max: well.iter().map(wall).max().unwrap_or(0),
        wall_sum: well.iter().map(wall).sum(),
        cpu_sum: well.iter().filter_map(|record| record.cpu).sum(),
        memory_max: well.iter().filter_map(|record| record.memory).max().unwrap_or(0),
        read_sum: well.iter().filter_map(|record| record.read).sum(),
        written_sum: well.iter().filter_map(|record| record.written).sum(),
        memory: None,
        time: None,
        cpus: None,
    };
    // Half as much again as the most that was seen, and never so little that the next input breaks it.
    let memory = Bytes((used.memory_max / 2 * 3).max(64 << 20).next_multiple_of(64 << 20));
    used.memory = (used.memory_max > 0 && asked.memory.is_some_and(|asked| differs(asked.0, memory.0))).then_some(memory);
    let time = Seconds((used.wall_max / 1000 * 2).max(600).next_multiple_of(300));
    used.time = asked.time.is_some_and(|asked| differs(asked.0, time.0)).then_some(time);
    // Short tasks say nothing of cpus: they mostly start.
    let busy = (used.cpu_share() * f64::from(asked.cpus)).ceil().max(1.0) as u32;
    used.cpus = (used.wall_max >= 10_000 && busy < asked.cpus).then_some(busy);
    used
}

/// By so much that a change pays.
fn differs(asked: u64, enough: u64) -> bool {
    asked > enough.saturating_mul(2) || asked < enough / 3 * 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::local::unstarted;

    fn record(seconds: i64, cpu: u64, memory: u64) -> Record {
        let record = unstarted(Outcome::Ok, String::new());
        Record {
            started: 0,
            ended: Some(seconds * 1000),
            cpu: Some(cpu * 1000),
            memory: Some(memory),
            ..record
        }
    }

    #[test]
    fn what_is_far_from_what_was_used_is_proposed_anew() {
        let asked = Resources {
            cpus: 8,
            memory: Some(Bytes(64 << 30)),
            time: Some(Seconds(86_400)),
            ..Resources::default()
        };
        let name = StageName("call".into());
        let used = stage_use(&name, &asked, &[record(1000, 1900, 1 << 30), record(500, 1000, 2 << 30)]);
        assert_eq!(
            (used.memory, used.time, used.cpus),
            (Some(Bytes(3 << 30)), Some(Seconds(2100)), Some(2))
        );
        let right = Resources {
            cpus: 2,
            memory: Some(Bytes(4 << 30)),
            time: Some(Seconds(3600)),
            ..Resources::default()
        };
        let used = stage_use(&name, &right, &[record(1000, 1900, 2 << 30)]);
        assert_eq!((used.memory, used.time, used.cpus), (None, None, None));
        // Nothing is proposed for what nobody asked for, nor from what was not measured.
        let used = stage_use(&name, &Resources::default(), &[record(0, 0, 0)]);
        assert_eq!((used.memory, used.time, used.cpus, used.cpu_share()), (None, None, None, 0.0));
    }
}
