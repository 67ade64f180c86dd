//! Plans made by hand, for the engine's own tests.

use std::path::Path;

use crate::lock::Lock;
use crate::oci::Digest;
use crate::plan::{Plan, Reason, StagePlan, TaskSet, VERSION};
use crate::workflow::{Array, Command, Need, Resources, Stage, StageName, StageUser, Template};

/// A stage without a container whose script is empty. A count above 1 is an array.
pub fn stage(name: &str, count: u32, needs: &[&str]) -> Stage {
    Stage {
        name: StageName(name.into()),
        needs: needs
            .iter()
            .map(|need| Need {
                stage: StageName((*need).into()),
                same_shard: false,
            })
            .collect(),
        always: false,
        image: None,
        command: Command::Script(Template(String::new())),
        env: Default::default(),
        binds: Vec::new(),
        array: (count > 1).then(|| Array {
            count,
            max_parallel: None,
            values: Vec::new(),
        }),
        resources: Resources::default(),
        outputs: Vec::new(),
        workdir: None,
        user: StageUser::default(),
        retry: Default::default(),
        slurm: Default::default(),
    }
}

/// All of these stages, everything still to do.
pub fn plan<const N: usize>(stages: [Stage; N]) -> Plan {
    plan_in(Path::new("/nowhere"), stages)
}

/// The same, for a workflow in `dir`.
pub fn plan_in<const N: usize>(dir: &Path, stages: [Stage; N]) -> Plan {
    let planned = |stage: Stage| {
        let identity = Digest::sha256(stage.name.0.as_bytes());
        (
            stage.name.clone(),
            StagePlan {
                identity,
                parts: Default::default(),
                todo: TaskSet::all(stage.tasks()),
                reason: Reason::NeverRan,
                stage,
            },
        )
    };
    Plan {
        version: VERSION,
        name: "test".into(),
        file: dir.join("pipeline.yaml"),
        dir: dir.to_owned(),
        params: Default::default(),
        lock: Lock::default(),
        stages: stages.into_iter().map(planned).collect(),
    }
}
