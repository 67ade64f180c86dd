//! Which tasks run and why, what a task is, and what makes a stage another stage.

use std::path::{Path, PathBuf};

use dvrun::lock::{Lock, LockedData, LockedImage};
use dvrun::oci::Digest;
use dvrun::plan::{Plan, PlanError, Previous, PreviousStage, Reason, Selection, Task, TaskError, TaskSet, plan, summary, task};
use dvrun::workflow::{BindMode, Command, DataSource, StageName, Workflow};

use super::good::{flow, flow_with};

fn name(name: &str) -> StageName {
    StageName(name.to_owned())
}

/// What resolving would make of a workflow.
fn lock(workflow: &Workflow) -> Lock {
    let image = |(name, image): (&String, &dvrun::workflow::Image)| {
        let locked = LockedImage {
            source: image.source.clone(),
            digest: Some(Digest::sha256(name.as_bytes())),
            path: Some(Path::new("/store/images").join(name)),
        };
        (name.clone(), locked)
    };
    let data = |(name, set): (&String, &dvrun::workflow::DataSet)| {
        let (path, files) = match &set.source {
            DataSource::Path(path) => (path.clone(), vec![]),
            DataSource::Archive(_) => (Path::new("/store/data").join(name), vec![]),
            DataSource::Files(files) => (
                Path::new("/store/data").join(name),
                files.iter().map(|file| file.name.clone()).collect(),
            ),
        };
        let identity = Digest::sha256(name.as_bytes());
        (name.clone(), LockedData { identity, path, files })
    };
    Lock {
        images: workflow.images.iter().map(image).collect(),
        data: workflow.data.iter().map(data).collect(),
    }
}

pub fn planned(workflow: &Workflow) -> Plan {
    plan(workflow, &lock(workflow), &Previous::default(), &Selection::default()).unwrap()
}

/// As if everything in `plan` had ended well.
fn finished(plan: &Plan) -> Previous {
    let stage = |(name, stage): (&StageName, &dvrun::plan::StagePlan)| {
        let all = TaskSet::all(stage.stage.tasks());
        let previous = PreviousStage {
            identity: stage.identity.clone(),
            succeeded: all.clone(),
            present: all,
            missing: None,
        };
        (name.clone(), previous)
    };
    Previous {
        stages: plan.stages.iter().map(stage).collect(),
    }
}

const FLOW: &str = r#"
version: 1
params: {shards: 8, used: u, unused: n}
images: {i: "docker://example.org/i:1"}
data: {d: {base: "https://example.org/", files: [reads.bam, x]}}
defaults: {image: i}
stages:
  prepare: {run: "cat ${{ data.d.x }} ${{ params.used }}", outputs: [work/ref.fa]}
  call: {needs: [prepare], array: 8, run: "call ${{ array.index }}", outputs: ["work/${{ array.index }}.vcf"]}
  index: {needs: [{stage: call, shard: same}], array: 8, run: "index ${{ array.index }}", outputs: ["work/${{ array.index }}.tbi"]}
  merge: {needs: [index], run: merge, outputs: [work/all.vcf]}
  aside: {run: aside}
"#;

/// Each stage's `name todo reason`.
fn lines(plan: &Plan) -> Vec<String> {
    summary(plan)
        .iter()
        .map(|line| {
            let ranges: Vec<String> = plan.stages[&line.name]
                .todo
                .ranges()
                .iter()
                .map(|(first, last)| format!("{first}-{last}"))
                .collect();
            format!("{} [{}] {}", line.name, ranges.join(","), line.reason)
        })
        .collect()
}

#[test]
fn what_ran_does_not_run_again() {
    let workflow = flow(FLOW);
    let first = planned(&workflow);
    assert_eq!(
        lines(&first),
        [
            "prepare [0-0] never ran",
            "call [0-7] never ran",
            "index [0-7] never ran",
            "merge [0-0] never ran",
            "aside [0-0] never ran"
        ]
    );
    let again = plan(&workflow, &lock(&workflow), &finished(&first), &Selection::default()).unwrap();
    assert_eq!(
        lines(&again),
        ["prepare [] done", "call [] done", "index [] done", "merge [] done", "aside [] done"]
    );
    assert_eq!(again.stages[&name("call")].reason, Reason::Done);
}

#[test]
fn only_what_is_missing_runs_and_what_follows_from_it() {
    let workflow = flow(FLOW);
    let mut previous = finished(&planned(&workflow));
    previous.stages[&name("call")].succeeded = [0, 1, 2, 4, 5, 6, 7].into_iter().collect();
    previous.stages[&name("index")].succeeded = [0, 1, 2, 4, 5, 6].into_iter().collect();
    previous.stages.shift_remove(&name("merge"));
    let again = plan(&workflow, &lock(&workflow), &previous, &Selection::default()).unwrap();
    assert_eq!(
        lines(&again),
        [
            "prepare [] done",
            "call [3-3] 1 of 8 tasks did not finish",
            "index [3-3,7-7] needs `call`, which runs",
            "merge [0-0] never ran",
            "aside [] done"
        ]
    );

    let mut previous = finished(&planned(&workflow));
    previous.stages[&name("index")].present = TaskSet::all(7);
    previous.stages[&name("index")].missing = Some("work/7.tbi".into());
    let again = plan(&workflow, &lock(&workflow), &previous, &Selection::default()).unwrap();
    assert_eq!(
        lines(&again),
        [
            "prepare [] done",
            "call [] done",
            "index [7-7] an output is gone: work/7.tbi",
            "merge [0-0] needs `index`, which runs",
            "aside [] done"
        ]
    );
}

#[test]
fn earlier_runs_add_up() {
    let workflow = flow(FLOW);
    let done = |stages: &[(&str, &[u32])]| {
        stages
            .iter()
            .map(|(stage, indices)| (name(stage), indices.iter().copied().collect::<TaskSet>()))
            .collect()
    };
    let present = |mut previous: Previous| {
        for stage in previous.stages.values_mut() {
            stage.present = TaskSet::all(8);
        }
        previous
    };
    let mut previous = Previous::default();
    let first = planned(&workflow);
    previous.add_run(
        &first,
        &done(&[("prepare", &[0]), ("call", &[0, 1, 2, 4, 5, 6, 7]), ("index", &[0, 1])]),
    );
    let again = |previous: &Previous| plan(&workflow, &lock(&workflow), &present(previous.clone()), &Selection::default()).unwrap();
    let second = again(&previous);
    assert_eq!(
        lines(&second)[1..3],
        ["call [3-3] 1 of 8 tasks did not finish", "index [2-7] needs `call`, which runs"]
    );
    // The second run ends the missing call, and is killed in the middle of the rest.
    previous.add_run(&second, &done(&[("call", &[3, 99]), ("index", &[2, 3])]));
    let third = again(&previous);
    assert_eq!(lines(&third)[1..3], ["call [] done", "index [4-7] 4 of 8 tasks did not finish"]);
    // Of a run of another workflow nothing counts.
    let mut other = previous.clone();
    other.add_run(
        &planned(&flow(&FLOW.replace("\"call $", "\"other $"))),
        &done(&[("prepare", &[0]), ("call", &[0])]),
    );
    assert_eq!(lines(&again(&other))[1], "call [0-7] changed since it last ran");
}

#[test]
fn what_changed_runs_and_what_follows_from_it() {
    let before = finished(&planned(&flow(FLOW)));
    let lines_of = |workflow: &Workflow| lines(&plan(workflow, &lock(workflow), &before, &Selection::default()).unwrap());
    assert_eq!(
        lines_of(&flow(&FLOW.replace("\"call $", "\"call --fast $"))),
        [
            "prepare [] done",
            "call [0-7] changed since it last ran",
            "index [0-7] needs `call`, which runs",
            "merge [0-0] needs `index`, which runs",
            "aside [] done"
        ]
    );
    assert_eq!(
        lines_of(&flow_with(FLOW, &[("used", "v")]))[..2],
        ["prepare [0-0] changed since it last ran", "call [0-7] needs `prepare`, which runs"]
    );
    assert_eq!(lines_of(&flow_with(FLOW, &[("unused", "v")]))[0], "prepare [] done");
}

#[test]
fn a_selection_leaves_the_rest_alone() {
    let workflow = flow(FLOW);
    let (lock, done) = (lock(&workflow), finished(&planned(&workflow)));
    let with = |previous: &Previous, selection: Selection| plan(&workflow, &lock, previous, &selection);
    let forced = Selection {
        force: [name("index")].into(),
        ..Selection::default()
    };
    assert_eq!(
        lines(&with(&done, forced).unwrap())[1..4],
        ["call [] done", "index [0-7] forced", "merge [0-0] needs `index`, which runs"]
    );
    let only = Selection {
        only: [name("prepare"), name("aside")].into(),
        ..Selection::default()
    };
    assert_eq!(
        lines(&with(&Previous::default(), only).unwrap()),
        [
            "prepare [0-0] never ran",
            "call [] not selected",
            "index [] not selected",
            "merge [] not selected",
            "aside [0-0] never ran"
        ]
    );
    let until = Selection {
        until: Some(name("call")),
        ..Selection::default()
    };
    assert_eq!(
        lines(&with(&Previous::default(), until).unwrap())[1..3],
        ["call [0-7] never ran", "index [] not selected"]
    );
    let from = Selection {
        from: Some(name("index")),
        force: [name("merge")].into(),
        ..Selection::default()
    };
    assert_eq!(
        lines(&with(&done, from.clone()).unwrap()),
        [
            "prepare [] not selected",
            "call [] not selected",
            "index [] done",
            "merge [0-0] forced",
            "aside [] not selected"
        ]
    );
    // What is left out must be there.
    let error = with(&Previous::default(), from).unwrap_err();
    assert_eq!(
        error.to_string(),
        "stage `index` needs `call`, which is left out and has not finished as it now is"
    );
    assert_eq!(error.hint().unwrap(), "run `call` too");
    let unknown = Selection {
        only: [name("cal")].into(),
        ..Selection::default()
    };
    assert_eq!(
        with(&done, unknown).unwrap_err(),
        PlanError::UnknownStage {
            name: name("cal"),
            near: Some("call".into())
        }
    );
    let at_odds = Selection {
        only: [name("call")].into(),
        force: [name("merge")].into(),
        ..Selection::default()
    };
    assert_eq!(
        with(&done, at_odds).unwrap_err(),
        PlanError::ForcedAndLeftOut { name: name("merge") }
    );
}

const ONE: &str = r#"
version: 1
params: {p: 1, q: 2, out: o, m: {b: 1, a: 2}}
images: {i: "docker://example.org/i:1", j: "docker://example.org/j:1"}
data:
  d: {base: "https://example.org/", files: [x]}
  e: {base: "https://example.org/", files: [x]}
stages:
  before: {image: j, run: b}
  s:
    needs: [before]
    image: i
    run: "cmd ${{ params.p }} ${{ params.m.a }} ${{ resources.cpus }} ${{ run.dir }}"
    env: {A: "${{ params.q }}", B: b}
    binds: ["${{ data.d }}:/d", "${{ params.out }}:/o"]
    array: {values: [{x: 1, y: 2}, 3], max_parallel: 2}
    resources: {cpus: 1, memory: 1G, time: 1h}
    outputs: ["x-${{ array.index }}"]
    workdir: w
    retry: 2
    slurm: {partition: p}
"#;

fn identity(text: &str, change: impl Fn(&mut Lock)) -> Digest {
    let workflow = flow(text);
    let mut lock = lock(&workflow);
    change(&mut lock);
    let plan = plan(&workflow, &lock, &Previous::default(), &Selection::default()).unwrap();
    plan.stages[&name("s")].identity.clone()
}

#[test]
fn an_identity_stays_what_it_is() {
    // A change here makes every finished stage of every user run again: it needs a reason, and a line in the change log.
    assert_eq!(
        identity(ONE, |_| {}).to_string(),
        "sha256:59b2a686acb63cd5d6be767020a5ca70e24108da0584f7c886d12d1515f27ea6"
    );
}

#[test]
fn what_a_stage_computes_with_is_in_its_identity() {
    let same = identity(ONE, |_| {});
    for (old, new) in [
        ("cmd ", "cmd2 "),
        ("p: 1,", "p: 3,"),
        ("q: 2,", "q: 3,"),
        ("B: b}", "B: c}"),
        ("B: b}", "C: b}"),
        (":/d\"", ":/d2\""),
        (":/o\"", ":/o2\""),
        ("${{ data.d }}:", "${{ data.e }}:"),
        ("x: 1, y", "x: 2, y"),
        ("[{x: 1, y: 2}, 3]", "[{x: 1, y: 2}, 3, 4]"),
        ("\"x-$", "\"y-$"),
        ("workdir: w", "workdir: v"),
        ("workdir: w", ""),
        ("    image: i", "    image: j"),
        ("image: j, run: b}", "image: j, run: c}"),
        ("needs: [before]", "needs: []"),
        ("run: \"cmd", "app: x\n    args: [\"cmd"),
    ] {
        let mut text = ONE.replacen(old, new, 1);
        if new.starts_with("app") {
            text = text.replace("run.dir }}\"", "run.dir }}\"]");
        }
        assert_ne!(text, ONE, "{old}");
        assert_ne!(identity(&text, |_| {}), same, "{old} → {new}");
    }
    // A name that is worked out may be any of them.
    let any = ONE.replace("params.p }}", "params['p'] }}");
    assert_ne!(identity(&any, |_| {}), identity(&any.replace("out: o", "out: elsewhere"), |_| {}));
    assert_ne!(identity(ONE, |lock| lock.images["i"].digest = None), same);
    assert_ne!(identity(ONE, |lock| lock.images["j"].digest = Some(Digest::sha256(b"new"))), same);
    assert_ne!(identity(ONE, |lock| lock.data["d"].identity = Digest::sha256(b"new")), same);
}

#[test]
fn how_and_where_a_stage_runs_is_not_in_its_identity() {
    let same = identity(ONE, |_| {});
    for (old, new) in [
        ("cpus: 1, memory: 1G, time: 1h", "cpus: 8, memory: 9G, gpus: 1"),
        ("max_parallel: 2", "max_parallel: 9"),
        ("retry: 2", "retry: {max: 3, when: [oom]}"),
        ("partition: p", "partition: q, args: [--nice]"),
        ("out: o", "out: elsewhere"),
        ("m: {b: 1, a: 2}", "m: {a: 2, b: 1}"),
        ("{x: 1, y: 2}", "{y: 2, x: 1}"),
        ("{A: \"${{ params.q }}\", B: b}", "{B: b, A: \"${{ params.q }}\"}"),
        ("version: 1", "version: 1\nname: other\ndescription: another"),
        ("  before:", "  aside: {image: j, run: z}\n  before:"),
        ("docker://example.org/i:1", "docker://mirror.example.org/i:1"),
    ] {
        let text = ONE.replacen(old, new, 1);
        assert_ne!(text, ONE, "{old}");
        assert_eq!(identity(&text, |_| {}), same, "{old} → {new}");
    }
    let moved = identity(ONE, |lock| {
        lock.images["i"].path = None;
        lock.data["d"].path = "/elsewhere".into();
        lock.data["e"].identity = Digest::sha256(b"new");
    });
    assert_eq!(moved, same);
}

pub fn of(plan: &Plan, stage: &str, index: u32) -> Task {
    task(plan, &name(stage), index, Path::new("/flow/.dvrun/runs/r")).unwrap()
}

pub fn binds(task: &Task) -> Vec<String> {
    task.binds
        .iter()
        .map(|bind| {
            let mode = match bind.mode {
                BindMode::ReadOnly => "ro",
                BindMode::ReadWrite => "rw",
            };
            let create = if bind.create { " create" } else { "" };
            format!("{}:{}:{mode}{create}", bind.source.display(), bind.target.display())
        })
        .collect()
}

#[test]
fn a_task_is_a_stage_with_everything_in_place() {
    let workflow = flow(FLOW);
    let plan = planned(&workflow);
    let call = of(&plan, "call", 7);
    assert_eq!(call.image.as_deref(), Some("i"));
    assert_eq!(call.command, Command::Script(dvrun::workflow::Template("call 7".into())));
    assert_eq!(call.outputs, ["/flow/work/7.vcf"]);
    assert_eq!(call.cwd, PathBuf::from("/flow"));
    assert_eq!(binds(&call), ["/flow:/flow:ro", "/flow/work:/flow/work:rw create"]);
    let prepare = of(&plan, "prepare", 0);
    assert_eq!(
        prepare.command,
        Command::Script(dvrun::workflow::Template("cat /store/data/d/x u".into()))
    );
    assert_eq!(binds(&prepare)[0], "/store/data/d:/store/data/d:ro");

    assert_eq!(
        task(&plan, &name("call"), 8, Path::new("/r")).unwrap_err(),
        TaskError::NoSuchTask {
            stage: name("call"),
            index: 8,
            count: 8
        }
    );
    assert!(matches!(
        task(&plan, &name("cal"), 0, Path::new("/r")),
        Err(TaskError::NoSuchStage(_))
    ));
}

#[test]
fn a_task_sees_what_it_names_and_nothing_twice() {
    let workflow = flow(
        r#"
version: 1
params: {n: 3}
images: {i: "docker://example.org/i:1"}
data: {d: {base: "https://example.org/", files: [x]}, unnamed: {path: /cohort}}
defaults: {image: i, workdir: "work/${{ stage.name }}"}
stages:
  first: {run: a, outputs: [ref/a.fa, "shared-${{ params.n }}/x/*.txt"]}
  many: {needs: [first], run: a, array: 3, outputs: ["parts/p${{ array.index }}/x.gz", "n/${{ array.count }}/${{ array.value }}${{ array.index }}"]}
  last:
    needs: [many]
    env: {X: "${{ data.d }}", Y: "${{ run.dir }}"}
    args: [--ref, "${{ data.d['x'] }}"]
    binds: [./parts:/parts:ro, ./results:/results, ./script.py:/s.py:ro]
    workdir: /work
    outputs: [results/deep/out.txt, /abs/out.txt]
  host: {image: none, run: [true], outputs: ["h/*.x"]}
"#
        .replace("${{ array.value }}", "")
        .as_str(),
    );
    let plan = planned(&workflow);
    let many = of(&plan, "many", 2);
    assert_eq!(many.outputs, ["/flow/parts/p2/x.gz", "/flow/n/3/2"]);
    assert_eq!(many.cwd, PathBuf::from("/flow/work/many"));
    assert_eq!(
        binds(&many),
        [
            "/flow:/flow:ro",
            "/flow/work/many:/flow/work/many:rw create",
            "/flow/parts/p2:/flow/parts/p2:rw create",
            "/flow/n/3:/flow/n/3:rw create",
            "/flow/ref:/flow/ref:ro create",
            "/flow/shared-3/x:/flow/shared-3/x:ro create",
        ]
    );
    let last = of(&plan, "last", 0);
    assert_eq!(last.cwd, PathBuf::from("/work"));
    assert_eq!(
        last.env,
        [
            ("X".to_owned(), "/store/data/d".to_owned()),
            ("Y".to_owned(), "/flow/.dvrun/runs/r".to_owned())
        ]
    );
    assert_eq!(
        binds(&last),
        [
            "/flow/parts:/parts:ro create",
            "/flow/results:/results:rw create",
            "/flow/script.py:/s.py:ro",
            "/store/data/d:/store/data/d:ro",
            "/flow:/flow:ro",
            "/flow/results/deep:/flow/results/deep:rw create",
            "/abs:/abs:rw create",
            "/flow/parts:/flow/parts:ro create",
            "/flow/n/3:/flow/n/3:ro create",
            "/flow/ref:/flow/ref:ro create",
            "/flow/shared-3/x:/flow/shared-3/x:ro create",
        ]
    );
    let host = of(&plan, "host", 0);
    assert_eq!((host.image.as_deref(), host.outputs), (None, vec!["/flow/h/*.x".to_owned()]));
}

#[test]
fn a_plan_comes_back_from_its_file() {
    let workflow = flow(ONE);
    let plan = planned(&workflow);
    let text = serde_json::to_string(&plan).unwrap();
    let read: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    assert_eq!(of(&read, "s", 1), of(&plan, "s", 1));
}

#[test]
fn a_huge_array_is_planned_without_its_tasks() {
    let workflow = flow(&FLOW.replace("array: 8", "array: 1000000"));
    let first = planned(&workflow);
    let mut previous = finished(&first);
    previous.stages[&name("call")].succeeded = TaskSet::all(999_999);
    let again = plan(&workflow, &lock(&workflow), &previous, &Selection::default()).unwrap();
    assert_eq!(again.stages[&name("index")].todo.ranges(), [(999_999, 999_999)]);
    assert!(serde_json::to_string(&again).unwrap().len() < 10_000);
    assert_eq!(of(&again, "call", 999_999).outputs, ["/flow/work/999999.vcf"]);
}

#[test]
fn the_folder_of_a_workflow_is_no_pattern() {
    let mut plan = planned(&flow(FLOW));
    plan.dir = "/odd [x]*".into();
    assert_eq!(of(&plan, "call", 0).outputs, ["/odd [[]x[]][*]/work/0.vcf"]);
}
