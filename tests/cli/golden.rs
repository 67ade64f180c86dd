//! The scripts of a real workflow, planned without a network by the real binary, against the ones in
//! `tests/workflow/golden`. `DVRUN_BLESS=1` writes them anew.

use std::env;
use std::fs;

use crate::support::{Sandbox, binary, checkout, finish};

#[test]
fn deepvariant_is_planned_as_ever() {
    let sandbox = Sandbox::new();
    let name = "deepvariant-0.5.0";
    let workflows = checkout().join("workflows");
    fs::copy(workflows.join(format!("{name}.yaml")), sandbox.work().join("dv.yaml")).expect("the sandbox is writable");
    let plan = finish(sandbox.dvrun().args(["plan", "dv.yaml", "--offline", "--scripts", "--json"])).ok();
    let plan = plan.complains("note: the digest of image `deepvariant`").json();
    let golden = checkout().join("tests/workflow/golden").join(name);
    let mut stages = Vec::new();
    for script in plan["scripts"].as_array().expect("scripts were asked for") {
        let stage = script["stage"].as_str().expect("each is of a stage");
        let text = script["script"].as_str().expect("each has a text");
        let text = text
            .replace(&sandbox.work().display().to_string(), "@WORKFLOW@")
            .replace(&sandbox.path().join("config.yaml").display().to_string(), "@CONFIG@")
            .replace(&binary().canonicalize().expect("it is built").display().to_string(), "@DVRUN@");
        let path = golden.join(format!("{stage}.sbatch"));
        if env::var_os("DVRUN_BLESS").is_some() {
            fs::write(&path, &text).expect("the checkout is writable");
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, expected, "{}", path.display());
        stages.push(stage.to_owned());
    }
    assert_eq!(stages, ["make_examples", "call_variants", "postprocess_variants"]);
    assert_eq!(plan["images"]["deepvariant"]["digest"], serde_json::Value::Null);
}

#[test]
fn a_plan_needs_no_registry_that_answers() {
    let sandbox = Sandbox::new();
    // Nobody listens at this port, and nobody is asked twice.
    sandbox.config("network: {attempts: 1}\n");
    sandbox.write(
        "x.yaml",
        "version: 1\nname: x\nimages: {t: 'docker://127.0.0.1:1/lab/tools:1.0'}\nstages:\n  s: {image: t, run: 'true'}\n",
    );
    let plan = finish(sandbox.dvrun().args(["plan", "x.yaml"])).ok();
    assert_eq!(plan.stdout, "x: 1 stage, 1 task to run\n  s  1 task           never ran\n");
    plan.complains("error: image `t` cannot be had")
        .complains("note: this plan is made without asking again")
        .complains("note: the digest of image `t` (docker://127.0.0.1:1/lab/tools:1.0) is unknown");
    // To run is another matter.
    finish(sandbox.dvrun().args(["run", "x.yaml"]))
        .exits(3)
        .complains("error: image `t` cannot be had");
}
