//! A plan whose images and data a job of its own prepares, before everything else.

use super::identity::identity;
use super::{Plan, Reason, StagePlan, TaskSet};
use crate::lock::Lock;
use crate::oci::Digest;
use crate::workflow::{Need, Stage, StageName};

/// The name of the stage that prepares. No workflow can have such a one.
pub const PREPARE: &str = "@prepare";

/// Puts `stage`, which is called [`PREPARE`], before all that runs: every other stage of which anything runs needs it.
///
/// The identities of the others stay what they are: where images come from is none of their business.
pub fn prepare_first(plan: &mut Plan, stage: Stage) {
    let name = stage.name.clone();
    for planned in plan.stages.values_mut().filter(|planned| !planned.todo.is_empty()) {
        planned.stage.needs.push(Need {
            stage: name.clone(),
            same_shard: false,
        });
    }
    let (identity, parts) = identity(&stage, &plan.params, &plan.lock, &[]);
    let first = StagePlan {
        stage,
        identity,
        parts,
        todo: TaskSet::all(1),
        reason: Reason::Prepares,
    };
    plan.stages.shift_insert(0, name, first);
}

/// Fills in the digests that the plan was made without and `found` knows, and identifies its stages anew: what a later plan
/// calls the same is then the same.
pub fn complete(plan: &mut Plan, found: &Lock) {
    for (name, image) in plan.lock.images.iter_mut().filter(|(_, image)| image.digest.is_none()) {
        if let Some(found) = found.images.get(name).filter(|found| found.source == image.source) {
            *image = found.clone();
        }
    }
    for at in 0..plan.stages.len() {
        let stage = &plan.stages[at].stage;
        let needs = stage.needs.iter().filter(|need| need.stage.0 != PREPARE);
        let parents: Vec<(&StageName, &Digest)> = needs
            .filter_map(|need| plan.stages.get(&need.stage))
            .map(|planned| (&planned.stage.name, &planned.identity))
            .collect();
        let (identity, parts) = identity(stage, &plan.params, &plan.lock, &parents);
        (plan.stages[at].identity, plan.stages[at].parts) = (identity, parts);
    }
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;
    use crate::lock::LockedImage;
    use crate::plan::{Previous, Selection, plan};
    use crate::workflow::{Command, Image, Resources, Retry, SlurmOptions, StageUser, Template, Workflow};

    fn stage(name: &str, needs: &[&str]) -> Stage {
        let need = |need: &&str| Need {
            stage: StageName((*need).to_owned()),
            same_shard: false,
        };
        Stage {
            name: StageName(name.to_owned()),
            needs: needs.iter().map(need).collect(),
            always: false,
            image: (name != PREPARE).then(|| "tools".to_owned()),
            command: Command::Argv(vec![Template("true".to_owned())]),
            env: IndexMap::new(),
            binds: Vec::new(),
            array: None,
            resources: Resources::default(),
            outputs: Vec::new(),
            workdir: None,
            user: StageUser::default(),
            retry: Retry::default(),
            slurm: SlurmOptions::default(),
        }
    }

    fn lock(digest: Option<Digest>) -> Lock {
        let image = LockedImage {
            source: "docker://h.invalid/tools:1".to_owned(),
            path: None,
            digest,
        };
        Lock {
            images: IndexMap::from([("tools".to_owned(), image)]),
            data: IndexMap::new(),
        }
    }

    fn planned(lock: &Lock) -> Plan {
        let image = Image {
            source: "docker://h.invalid/tools:1".to_owned(),
            platform: None,
            apps: IndexMap::new(),
        };
        let stages = [stage("a", &[]), stage("b", &["a"])];
        let workflow = Workflow {
            file: "/w/flow.yaml".into(),
            dir: "/w".into(),
            name: "flow".to_owned(),
            description: None,
            params: IndexMap::new(),
            images: IndexMap::from([("tools".to_owned(), image)]),
            data: IndexMap::new(),
            stages: stages.into_iter().map(|stage| (stage.name.clone(), stage)).collect(),
        };
        plan(&workflow, lock, &Previous::default(), &Selection::default()).unwrap()
    }

    #[test]
    fn what_was_planned_without_a_digest_becomes_what_is_planned_with_it() {
        let digest = Digest::sha256(b"manifest");
        let (known, mut unknown) = (planned(&lock(Some(digest.clone()))), planned(&lock(None)));
        prepare_first(&mut unknown, stage(PREPARE, &[]));
        assert_eq!(
            unknown.stages.keys().map(|name| name.0.as_str()).collect::<Vec<_>>(),
            [PREPARE, "a", "b"]
        );
        assert!(
            unknown.stages[1..]
                .values()
                .all(|stage| stage.stage.needs.iter().any(|need| need.stage.0 == PREPARE))
        );
        let identity = |plan: &Plan, name: &str| plan.stages[&StageName(name.to_owned())].identity.clone();
        assert_ne!(identity(&unknown, "b"), identity(&known, "b"));
        complete(&mut unknown, &lock(Some(digest)));
        assert_eq!(
            [identity(&unknown, "a"), identity(&unknown, "b")],
            [identity(&known, "a"), identity(&known, "b")]
        );
        // Another image under the same name fills nothing in.
        let mut other = lock(Some(Digest::sha256(b"other")));
        other.images["tools"].source = "docker://h.invalid/tools:2".to_owned();
        let mut still = planned(&lock(None));
        complete(&mut still, &other);
        assert_eq!(still.lock, lock(None));
    }
}
