//! The workflow file: what is right in it, every mistake in it, and what a plan makes of it.

mod good;
mod hostile;
mod mistakes;
mod planning;

use dvrun::workflow::{Command, DataSource, Workflow, check};
use indexmap::IndexMap;

use crate::support::checkout;

/// A workflow of the repository.
fn shipped(name: &str) -> Workflow {
    let file = checkout().join("workflows").join(name);
    let text = std::fs::read_to_string(&file).unwrap();
    check(&text, &file, &IndexMap::new(), &|path| std::fs::read_to_string(path))
        .unwrap_or_else(|problems| panic!("{}", problems.iter().map(|p| p.at(&file).to_string() + "\n").collect::<String>()))
}

#[test]
fn shipped_workflows_have_no_mistakes() {
    let deepvariant = shipped("deepvariant-0.5.0.yaml");
    let names: Vec<&str> = deepvariant.stages.keys().map(|name| name.0.as_str()).collect();
    assert_eq!(names, ["make_examples", "call_variants", "postprocess_variants"]);
    let freebayes = shipped("na12878-freebayes.yaml");
    let names: Vec<&str> = freebayes.stages.keys().map(|name| name.0.as_str()).collect();
    assert_eq!(names, ["prepare", "call", "merge", "evaluate"]);
}

#[test]
fn deepvariant_runs_the_commands_that_people_type() {
    let workflow = shipped("deepvariant-0.5.0.yaml");
    let DataSource::Files(model) = &workflow.data["model"].source else {
        panic!()
    };
    assert_eq!(
        model[1].url,
        "gs://deepvariant/models/DeepVariant/0.5.0/DeepVariant-inception_v3-0.5.0+cl-182548131.data-wgs_standard/model.ckpt.index"
    );
    let plan = planning::planned(&workflow);
    let dir = workflow.dir.display().to_string();
    let words = |stage: &str, index: u32| {
        let Command::Argv(words) = planning::of(&plan, stage, index).command else {
            panic!()
        };
        words.into_iter().map(|word| word.0).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        words("make_examples", 3),
        "/opt/deepvariant/bin/make_examples --mode calling --ref /dv2/input/ucsc.hg19.chr20.unittest.fasta \
         --reads /dv2/input/NA12878_S1.chr20.10_10p1mb.bam --regions chr20:10,000,000-10,010,000 \
         --examples /dv2/work/examples.tfrecord@4.gz --task 3"
    );
    assert_eq!(
        words("call_variants", 0),
        "/opt/deepvariant/bin/call_variants --outfile /dv2/work/calls.tfrecord.gz \
         --examples /dv2/work/examples.tfrecord@4.gz --checkpoint /dv2/models/model.ckpt"
    );
    assert_eq!(
        words("postprocess_variants", 0),
        "/opt/deepvariant/bin/postprocess_variants --ref /dv2/input/ucsc.hg19.chr20.unittest.fasta \
         --infile /dv2/work/calls.tfrecord.gz --outfile /dv2/work/output.vcf.gz"
    );
    let shard = planning::of(&plan, "make_examples", 3);
    assert_eq!(shard.outputs, [format!("{dir}/work/examples.tfrecord-00003-of-00004.gz")]);
    assert_eq!(
        planning::binds(&shard)[..3],
        [
            "/store/data/input:/dv2/input:ro".to_owned(),
            "/store/data/model:/dv2/models:ro".to_owned(),
            format!("{dir}/work:/dv2/work:rw create"),
        ]
    );
    assert_eq!(
        planning::of(&plan, "call_variants", 0).env,
        [("OMP_NUM_THREADS".to_owned(), "4".to_owned())]
    );
}
