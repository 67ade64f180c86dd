//! Right files, and what becomes of them.

use std::path::{Path, PathBuf};

use dvrun::workflow::units::{Bytes, Seconds};
use dvrun::workflow::{
    BindMode, Command, DataSource, Need, Retry, RetryCause, Scale, SlurmOptions, StageName, Template, Workflow, check, params, scalar,
};
use indexmap::IndexMap;
use serde_json::{Value, json};

/// Checks a file `/flow/w.yaml`.
pub fn flow(text: &str) -> Workflow {
    flow_with(text, &[])
}

pub fn flow_with(text: &str, set: &[(&str, &str)]) -> Workflow {
    checked(text, set).unwrap_or_else(|problems| panic!("{problems}"))
}

pub fn checked(text: &str, set: &[(&str, &str)]) -> Result<Workflow, String> {
    let overrides: IndexMap<String, Value> = set.iter().map(|(name, value)| ((*name).to_owned(), scalar(value))).collect();
    let file = Path::new("/flow/w.yaml");
    let read = |path: &Path| match path.to_str() {
        Some("/flow/samples.tsv") => Ok("sample\treads\na\t/r/a.fq\n\nb\t/r/b.fq\r\n".to_owned()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    };
    check(text, file, &overrides, &read).map_err(|problems| problems.iter().map(|p| format!("{}\n", p.at(Path::new("w.yaml")))).collect())
}

fn text(text: &str) -> Template {
    Template(text.to_owned())
}

#[test]
fn the_whole_of_a_stage_is_read() {
    let workflow = flow(
        r#"
version: 1
name: whole
description: Everything
params: {shards: 4, memory: 2G}
images:
  tools:
    source: docker://example.org/lab/tools:1.0
    platform: linux/arm64/v8
    apps:
      sort:
        help: Sorts
        run: [/bin/sort, -n]
        env: {LC_ALL: C, A: app}
  local: oci:image:1.0
data:
  reads: {base: "gs://bucket/a/", files: {a+b c.bam: "sha256:0b82858821bd8817df03b35f90cdfcb2bae53af5ab46e61b8bcff1ad9ba49643", plain: }}
  listed: {base: "file:sub/../data", files: [x, "https://example.org/d/y.gz?v=1"]}
  model: {url: "https://example.org/m.tar.gz", sha256: 50CF21fa136216c6aa92d71120d275965cbc0507d82ec1e98800713d92ef3044, unpack: true}
  one: {url: "http://example.org/one.bed"}
  cohort: {path: ../cohort}
defaults:
  image: tools
  binds: ["${{ data.reads }}:/in", ./work:/work]
  env: {A: default, B: default}
  resources: {cpus: 2, memory: "${{ params.memory }}", time: 1:30:00}
  retry: {max: 2, when: [oom, timeout, node_fail, 137], scale: {memory: 2, time: 1.5}}
  slurm: {partition: main, args: [--nice]}
  workdir: here
stages:
  last:
    needs: [{stage: mid, shard: same}, host]
    array: {count: 4, max_parallel: 2}
    args: [x, "", "1.0", 1.0, 007]
    env: {B: stage, C: "${{ array.index }}"}
    binds:
      - /abs
      - "/a b:/t:ro"
      - {source: "c:d", target: /cd, mode: ro, optional: true}
      - "${{ data.cohort }}:/cohort:rw"
    resources: {memory: 4G, gpus: 1, nodes: 2, tasks: 8, scratch: 10G}
    outputs: out/${{ array.index }}/*.txt
    workdir: /inside
    slurm: {partition: gpu, args: ["--constraint=avx"]}
    always: true
  mid:
    needs: host
    app: sort
    args: [-u]
    array: "${{ params.shards }}"
    env: {A: stage}
    retry: 1
  other: {app: inside, args: [a], needs: [mid]}
  host:
    image: none
    run: |
      module load x
    outputs: [h.txt]
"#,
    );
    assert_eq!(workflow.dir, Path::new("/flow"));
    let names: Vec<&str> = workflow.stages.keys().map(|name| name.0.as_str()).collect();
    assert_eq!(names, ["host", "mid", "last", "other"]);

    let images = &workflow.images;
    assert_eq!(images["tools"].platform.as_deref(), Some("linux/arm64/v8"));
    assert_eq!(images["tools"].apps["sort"].run, [text("/bin/sort"), text("-n")]);
    assert_eq!(images["local"].source, "oci:/flow/image:1.0");

    let DataSource::Files(reads) = &workflow.data["reads"].source else {
        panic!()
    };
    assert_eq!(reads[0].name, "a+b c.bam");
    assert_eq!(reads[0].url, "gs://bucket/a/a+b%20c.bam");
    assert!(reads[0].digest.is_some() && reads[1].digest.is_none());
    let DataSource::Files(listed) = &workflow.data["listed"].source else {
        panic!()
    };
    let urls: Vec<(&str, &str)> = listed.iter().map(|file| (file.name.as_str(), file.url.as_str())).collect();
    assert_eq!(urls, [("x", "file:///flow/data/x"), ("y.gz", "https://example.org/d/y.gz?v=1")]);
    let DataSource::Archive(model) = &workflow.data["model"].source else {
        panic!()
    };
    assert_eq!(model.name, "m.tar.gz");
    assert!(matches!(&workflow.data["one"].source, DataSource::Files(files) if files[0].name == "one.bed"));
    assert_eq!(workflow.data["cohort"].source, DataSource::Path(PathBuf::from("/cohort")));

    let last = &workflow.stages[&StageName("last".into())];
    assert_eq!(
        last.needs,
        [("mid", true), ("host", false)].map(|(stage, same_shard)| Need {
            stage: StageName(stage.into()),
            same_shard
        })
    );
    assert!(last.always);
    assert_eq!(last.image.as_deref(), Some("tools"));
    assert_eq!(
        last.command,
        Command::Entrypoint {
            args: ["x", "", "1.0", "1.0", "007"].map(text).into()
        }
    );
    let env: Vec<(&str, &str)> = last.env.iter().map(|(name, value)| (name.as_str(), value.0.as_str())).collect();
    assert_eq!(env, [("A", "default"), ("B", "stage"), ("C", "${{ array.index }}")]);
    let binds: Vec<(&str, &str, BindMode, bool)> = last
        .binds
        .iter()
        .map(|bind| (bind.source.0.as_str(), bind.target.0.as_str(), bind.mode, bind.optional))
        .collect();
    use BindMode::{ReadOnly, ReadWrite};
    assert_eq!(
        binds,
        [
            ("${{ data.reads }}", "/in", ReadOnly, false),
            ("./work", "/work", ReadWrite, false),
            ("/abs", "/abs", ReadWrite, false),
            ("/a b", "/t", ReadOnly, false),
            ("c:d", "/cd", ReadOnly, true),
            ("${{ data.cohort }}", "/cohort", ReadWrite, false),
        ]
    );
    let array = last.array.as_ref().unwrap();
    assert_eq!((array.count, array.max_parallel, array.values.len()), (4, Some(2), 0));
    let resources = &last.resources;
    assert_eq!(
        (resources.cpus, resources.gpus, resources.nodes, resources.tasks),
        (2, 1, Some(2), Some(8))
    );
    assert_eq!(
        (resources.memory, resources.scratch, resources.time),
        (Some(Bytes(4 << 30)), Some(Bytes(10 << 30)), Some(Seconds(5400)))
    );
    assert_eq!(last.outputs, [text("out/${{ array.index }}/*.txt")]);
    assert_eq!(last.workdir, Some(text("/inside")));
    assert_eq!(
        last.retry,
        Retry {
            max: 2,
            when: vec![RetryCause::Oom, RetryCause::Timeout, RetryCause::NodeFail, RetryCause::Exit(137)],
            scale: Scale { memory: 2.0, time: 1.5 },
        }
    );
    assert_eq!(
        last.slurm,
        SlurmOptions {
            partition: Some("gpu".into()),
            args: vec!["--nice".into(), "--constraint=avx".into()],
        }
    );

    let mid = &workflow.stages[&StageName("mid".into())];
    // An app of the file is its command, and its environment lies under the defaults and the stage's.
    assert_eq!(mid.command, Command::Argv(["/bin/sort", "-n", "-u"].map(text).into()));
    let env: Vec<(&str, &str)> = mid.env.iter().map(|(name, value)| (name.as_str(), value.0.as_str())).collect();
    assert_eq!(env, [("LC_ALL", "C"), ("A", "stage"), ("B", "default")]);
    assert_eq!(mid.resources.memory, Some(Bytes(2 << 30)));
    assert_eq!(mid.workdir, Some(text("here")));
    assert_eq!((mid.retry.max, mid.tasks()), (1, 4));
    let other = &workflow.stages[&StageName("other".into())];
    assert_eq!(
        other.command,
        Command::App {
            name: "inside".into(),
            args: vec![text("a")]
        }
    );
    let host = &workflow.stages[&StageName("host".into())];
    assert_eq!((&host.image, host.binds.len()), (&None, 0));
    assert_eq!(host.command, Command::Script(text("module load x\n")));
}

#[test]
fn arrays_have_values() {
    let workflow = flow(
        r#"
version: 1
images: {i: "oci:i"}
defaults: {image: i}
stages:
  values: {run: a, array: {values: [a, {b: 1}, 1.10], max_parallel: 1}}
  short: {run: a, array: [x, y]}
  file: {run: "cat ${{ array.value.reads }}", array: {file: samples.tsv}}
  matrix: {run: a, array: {matrix: {tool: [p, q], n: [1, 2]}}}
"#,
    );
    let values = |name: &str| workflow.stages[&StageName(name.into())].array.clone().unwrap();
    assert_eq!(values("values").values, [json!("a"), json!({"b": 1}), json!("1.10")]);
    assert_eq!(values("short").count, 2);
    assert_eq!(
        values("file").values,
        [
            json!({"sample": "a", "reads": "/r/a.fq"}),
            json!({"sample": "b", "reads": "/r/b.fq"})
        ]
    );
    assert_eq!(
        values("matrix").values,
        [
            json!({"tool": "p", "n": 1}),
            json!({"tool": "p", "n": 2}),
            json!({"tool": "q", "n": 1}),
            json!({"tool": "q", "n": 2})
        ]
    );
}

#[test]
fn scalars_are_what_they_look_like_and_stay_as_written() {
    for (text, value) in [
        ("4", json!(4)),
        ("-4", json!(-4)),
        ("1.0", json!(1.0)),
        ("0.5", json!(0.5)),
        ("1.10", json!("1.10")),
        ("007", json!("007")),
        ("+1", json!("+1")),
        ("1e3", json!("1e3")),
        ("0x1F", json!("0x1F")),
        ("1_000", json!("1_000")),
        ("2:00:00", json!("2:00:00")),
        ("99999999999999999999", json!("99999999999999999999")),
        ("-0", json!("-0")),
        (".inf", json!(".inf")),
        ("inf", json!("inf")),
        ("NaN", json!("NaN")),
        ("true", json!(true)),
        ("FALSE", json!(false)),
        ("yes", json!("yes")),
        ("on", json!("on")),
        ("null", Value::Null),
        ("~", Value::Null),
        ("", Value::Null),
        ("2024-01-01", json!("2024-01-01")),
    ] {
        assert_eq!(scalar(text), value, "{text}");
        assert_eq!(params(&format!("x: {text}\n")).unwrap()["x"], value, "{text}");
    }
    let quoted = params("x: '4'\ny: |\n  4\nz: !!str 4\n").unwrap();
    assert_eq!(quoted.values().collect::<Vec<_>>(), [&json!("4"), &json!("4\n"), &json!("4")]);
    assert_eq!(
        params("[1]").unwrap_err()[0].message,
        "`params` is a map (`key: value`), not a list"
    );
}

#[test]
fn parameters_are_overridden_and_unknown_ones_refused() {
    let text = "version: 1\nparams: {shards: 4, region: chr20}\nimages: {i: 'oci:i'}\nstages: {s: {image: i, run: a, array: '${{ params.shards }}'}}\n";
    let workflow = flow_with(text, &[("shards", "16")]);
    assert_eq!(workflow.params["shards"], json!(16));
    assert_eq!(workflow.stages[0].tasks(), 16);
    assert_eq!(
        checked(text, &[("shrads", "8"), ("shards", "many")]).unwrap_err(),
        "w.yaml: the workflow has no parameter `shrads`; did you mean `shards`?\n\
         w.yaml:4:39: the count of an array is a whole number from 1 to 1000000, not `many`\n"
    );
}

#[test]
fn anchors_and_merging_by_hand_work() {
    let workflow = flow(
        "version: 1\nimages: {i: 'oci:i'}\nstages:\n  a: &a {image: i, run: x, resources: &r {memory: 1G}}\n  b: *a\n  c: {image: i, run: y, resources: *r}\n",
    );
    assert_eq!(workflow.stages[1].command, Command::Script(text("x")));
    assert_eq!(workflow.stages[2].resources.memory, Some(Bytes(1 << 30)));
}
