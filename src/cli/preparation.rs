//! Where images and data are prepared: on the submitting host, or by the first job of the graph, for sites whose login nodes
//! forbid such work (`--prepare job`). What names mean (kilobytes of manifests) is still asked here where a network is.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indexmap::IndexMap;
use serde::Deserialize;

use super::args::Global;
use super::failure::{Failure, Outcome, exit};
use super::images::Network;
use super::prepare::{self, Prepared, Selected, Wanted};
use super::settings::Settings;
use crate::engine::Provision;
use crate::fetch;
use crate::plan::{self, PREPARE, Plan};
use crate::state::{Preparation, RunDir};
use crate::workflow::template::literal;
use crate::workflow::units::{Bytes, Seconds, as_written};
use crate::workflow::{Command, DataSource, Resources, Retry, SlurmOptions, Stage, StageName, StageUser, Template, Workflow};

/// Who brings images and data into the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Where {
    /// This host, before anything is submitted
    #[default]
    Here,
    /// The first job of the graph, which all others wait for
    Job,
}

/// What the job that prepares asks for: `prepare_job` of a profile.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareJob {
    cpus: Option<u32>,
    #[serde(deserialize_with = "as_written")]
    memory: Option<Bytes>,
    #[serde(deserialize_with = "as_written")]
    time: Option<Seconds>,
    partition: Option<String>,
    args: Vec<String>,
}

/// The same on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Where images and data are prepared (otherwise as the profile says, or here)
    #[arg(long, value_name = "WHERE")]
    prepare: Option<Where>,
    /// Partition of the job that prepares
    #[arg(long, value_name = "NAME")]
    prepare_partition: Option<String>,
    /// Cpus of the job that prepares [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prepare_cpus: Option<u32>,
    /// Memory of the job that prepares [default: 4G]
    #[arg(long, value_name = "SIZE")]
    prepare_memory: Option<Bytes>,
    /// Time limit of the job that prepares [default: 4h]
    #[arg(long, value_name = "TIME")]
    prepare_time: Option<Seconds>,
}

const CPUS: u32 = 4;
const MEMORY: Bytes = Bytes(4 << 30);
const TIME: Seconds = Seconds(4 * 3600);

impl Options {
    fn place(&self, settings: &Settings) -> Where {
        self.prepare.unwrap_or(settings.profile.prepare)
    }

    /// The stage that prepares.
    fn stage(&self, settings: &Settings) -> Stage {
        let job = &settings.profile.prepare_job;
        let cpus = self.prepare_cpus.or(job.cpus).unwrap_or(CPUS);
        let mut words = vec![literal(&settings.program.path.to_string_lossy())];
        words.extend(settings.program.options.iter().map(|word| literal(word)));
        words.extend(["__prepare", "${{ run.dir }}"].map(|word| Template(word.to_owned())));
        // The store is one folder of the cache.
        let cache = settings.store.root().parent().unwrap_or(Path::new("/")).to_string_lossy();
        let threads = Template(cpus.to_string());
        Stage {
            name: StageName(PREPARE.to_owned()),
            needs: Vec::new(),
            always: false,
            image: None,
            command: Command::Argv(words),
            env: IndexMap::from([
                ("DVRUN_CACHE".to_owned(), literal(&cache)),
                ("RAYON_NUM_THREADS".to_owned(), threads),
            ]),
            binds: Vec::new(),
            array: None,
            resources: Resources {
                cpus,
                memory: Some(self.prepare_memory.or(job.memory).unwrap_or(MEMORY)),
                time: Some(self.prepare_time.or(job.time).unwrap_or(TIME)),
                ..Resources::default()
            },
            outputs: Vec::new(),
            workdir: None,
            user: StageUser::default(),
            retry: Retry::default(),
            slurm: SlurmOptions {
                partition: self.prepare_partition.clone().or_else(|| job.partition.clone()),
                args: job.args.clone(),
            },
        }
    }
}

/// Reads, resolves and plans. Where a job prepares, this host may be one without a network: what cannot be asked is asked by
/// the job.
pub fn plan(wanted: &Wanted, options: &Options, global: &Global, settings: &Settings) -> Result<Prepared, Failure> {
    match options.place(settings) {
        Where::Here => prepare::plan(wanted, global, settings),
        Where::Job => prepare::preview(wanted, global, settings),
    }
}

/// Brings images and data into the store, or leaves that to the first job of the graph.
///
/// # Errors
/// What cannot be had, and what keeps stages from running as far as it is known.
pub fn bring(prepared: &mut Prepared, selected: &Selected, options: &Options, global: &Global, settings: &Settings) -> Result<(), Failure> {
    if !leave(prepared, selected, options, settings)? {
        return prepare::fetch(prepared, selected, global, settings);
    }
    // What is neither downloaded nor converted is looked for at once.
    let here = Workflow {
        images: IndexMap::new(),
        data: (prepared.workflow.data.iter())
            .filter(|(_, set)| matches!(set.source, DataSource::Path(_)))
            .map(|(name, set)| (name.clone(), set.clone()))
            .collect(),
        ..declared(&prepared.workflow)
    };
    prepare::with_session(Network::Offline, global, settings, async |session| {
        Ok(fetch::data(session, &here).await?)
    })?;
    prepare::check(&prepared.plan, Provision::Coming)
}

/// Puts a stage that prepares before all others, where one is wanted and something is missing. What is there needs no job,
/// and what nobody may ask for is not to be had by one.
///
/// # Errors
/// A store that cannot be read.
pub fn leave(prepared: &mut Prepared, selected: &Selected, options: &Options, settings: &Settings) -> Result<bool, Failure> {
    let lock = &prepared.plan.lock;
    let nobody_knows = selected.network() == Network::Offline && lock.images.values().any(|image| image.digest.is_none());
    let is_there = || fetch::is_there(&settings.store, &prepared.workflow, lock, &|image| wants(&prepared.plan, image));
    if options.place(settings) == Where::Here || nobody_knows || is_there()? {
        return Ok(false);
    }
    prepared.preparation = Some(Preparation {
        workflow: declared(&prepared.workflow),
        offline: selected.network() == Network::Offline,
    });
    plan::prepare_first(&mut prepared.plan, options.stage(settings));
    Ok(true)
}

/// A workflow's images and data sets, without its stages.
fn declared(workflow: &Workflow) -> Workflow {
    Workflow {
        file: workflow.file.clone(),
        dir: workflow.dir.clone(),
        name: workflow.name.clone(),
        description: None,
        params: IndexMap::new(),
        images: workflow.images.clone(),
        data: workflow.data.clone(),
        stages: IndexMap::new(),
    }
}

fn wants(plan: &Plan, image: &str) -> bool {
    let mut running = plan.stages.values().filter(|stage| !stage.todo.is_empty());
    running.any(|stage| stage.stage.image.as_deref() == Some(image))
}

/// Whether two plans are to do the same, whatever prepares it. `ours` may have been made where less is known.
pub fn is_same(ours: &Plan, theirs: &Plan) -> bool {
    let mut ours = ours.clone();
    plan::complete(&mut ours, &theirs.lock);
    let identities = |plan: &Plan| {
        let others = plan.stages.iter().filter(|(name, _)| name.0 != PREPARE);
        others
            .map(|(name, stage)| (name.clone(), stage.identity.clone()))
            .collect::<Vec<_>>()
    };
    identities(&ours) == identities(theirs)
}

/// The inside of the job that prepares
#[derive(Args)]
pub struct Arguments {
    /// The run's folder
    run: PathBuf,
}

/// `dvrun __prepare RUN`: as the submitting host would have done it. Digests that were not known there are written into the
/// run's plan before any other task reads it.
pub fn run(arguments: &Arguments, global: &Global, settings: &Settings) -> Outcome {
    let run = RunDir::at(arguments.run.clone());
    let preparation = run.preparation()?;
    let mut plan = run.plan()?;
    prepare::with_session(preparation.offline.into(), global, settings, async |session| {
        if plan.lock.images.values().any(|image| image.digest.is_none()) {
            let found = fetch::resolve(session, &preparation.workflow).await?;
            plan::complete(&mut plan, &found);
            run.replace_plan(&plan)?;
        }
        let wanted = |image: &str| wants(&plan, image);
        Ok(fetch::all(session, &preparation.workflow, &plan.lock, &wanted).await?)
    })?;
    prepare::check(&plan, Provision::There)?;
    Ok(exit::DONE)
}
