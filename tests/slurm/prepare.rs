//! Images and data prepared by the first job of the graph, on a real cluster from a real registry.

use std::fs;
use std::path::PathBuf;

use dvrun::plan::PREPARE;
use dvrun::state::{Outcome, RunDir};

use super::real::{cluster, name};
use crate::support::{FileServer, Registry, Sandbox, checkout, finish};

/// A registry with one image, a server with one file, and a workflow that needs both.
struct Site {
    sandbox: Sandbox,
    registry: Registry,
    _files: FileServer,
    file: PathBuf,
}

/// What the job that prepares is given; `more` is of `prepare_job`.
fn profile(site: &Site, registry: &str, more: &str) {
    site.sandbox.config(&format!(
        "network: {{attempts: 1}}\nregistries:\n  \"images.invalid\": {{mirrors: [\"http://{registry}\"]}}\nprofile: site\nprofiles:\n  site:\n    \
         prepare: job\n    prepare_job: {{cpus: 1, memory: 300M, time: 10m, {more}}}\n"
    ));
}

fn site(tag: &str) -> Option<Site> {
    cluster()?;
    let registry = Registry::start()?;
    registry.push_oci(&checkout().join("workflows/quickstart/image"), "1.0", "lab/tools:1.0");
    let sandbox = Sandbox::new();
    sandbox.write("served/numbers", "1\n2\n3\n");
    let files = FileServer::new(&sandbox.work().join("served"));
    let file = sandbox.write(
        "flow/flow.yaml",
        format!(
            "version: 1\nname: prepared\nimages: {{tools: \"docker://images.invalid/lab/tools:{tag}\"}}\n\
             data: {{numbers: {{base: \"{}\", files: [numbers]}}}}\ndefaults: {{image: tools}}\nstages:\n  \
             count: {{run: \"wc -l < ${{{{ data.numbers.numbers }}}} > out/count\", outputs: [out/count]}}\n  \
             twice: {{needs: [count], array: 2, run: \"cat out/count > out/again-${{{{ array.index }}}}\", \
             outputs: [\"out/again-${{{{ array.index }}}}\"]}}\n",
            files.url()
        ),
    );
    Some(Site {
        sandbox,
        registry,
        _files: files,
        file,
    })
}

impl Site {
    fn dvrun(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.sandbox.dvrun();
        command.current_dir(self.file.parent().unwrap()).args(words);
        command
    }

    fn run(&self) -> RunDir {
        RunDir::latest(self.file.parent().unwrap()).unwrap().unwrap()
    }

    /// How many images and data sets the store has.
    fn stored(&self) -> [usize; 2] {
        ["images", "data"].map(|kind| {
            let entries = walkdir::WalkDir::new(self.sandbox.cache().join("v1").join(kind)).max_depth(2);
            let whole = |path: &std::path::Path| path.join("image.json").is_file() || path.join("numbers").is_file();
            entries.into_iter().flatten().filter(|entry| whole(entry.path())).count()
        })
    }

    fn release_and_wait(&self) {
        finish(&mut self.dvrun(&["release", PREPARE])).ok();
        finish(&mut self.dvrun(&["wait"])).ok();
    }
}

#[test]
fn the_first_job_prepares_and_nothing_is_done_here() {
    let Some(site) = site("1.0") else { return };
    profile(&site, &site.registry.host(), "args: [--hold]");
    let shown = finish(&mut site.dvrun(&["plan", "flow.yaml", "--scripts", "--prepare-time", "20m"])).ok();
    shown.says("#SBATCH --time=00:20:00\n").says(&format!("/RUN {PREPARE} "));
    finish(&mut site.dvrun(&["submit", "flow.yaml"])).ok().complains(PREPARE);
    assert_eq!(site.stored(), [0, 0]);
    let status = finish(&mut site.dvrun(&["status", "--json"])).json();
    assert_eq!(
        status["stages"][PREPARE]["waiting"]["held by its user (`dvrun release` lets it go)"], 1,
        "{status:#}"
    );
    // Another call goes on with the same run: it asks for the same, whatever prepares it.
    finish(&mut site.dvrun(&["submit", "flow.yaml"])).ok().complains("is active");
    site.release_and_wait();
    assert_eq!(site.stored(), [1, 1]);
    assert_eq!(site.sandbox.read("flow/out/again-1"), "3\n");
    let record = site.run().records(&name(PREPARE)).read_one(0).unwrap().unwrap();
    assert_eq!(record.outcome, Outcome::Ok);
    finish(&mut site.dvrun(&["submit", "flow.yaml"])).ok().complains("nothing to run");
    // What is in the store needs no job.
    finish(&mut site.dvrun(&["submit", "flow.yaml", "--force", "twice", "--wait"])).ok();
    assert!(!site.run().plan().unwrap().stages.contains_key(&name(PREPARE)));
}

#[test]
fn what_names_mean_is_asked_by_the_job_where_this_host_cannot() {
    let Some(site) = site("1.0") else { return };
    // Nobody listens at this port.
    profile(&site, "127.0.0.1:1", "args: [--hold]");
    finish(&mut site.dvrun(&["submit", "flow.yaml"]))
        .ok()
        .complains("note: the digest of image `tools`");
    assert_eq!(site.run().plan().unwrap().lock.images["tools"].digest, None);
    profile(&site, &site.registry.host(), "");
    site.release_and_wait();
    assert_eq!(site.sandbox.read("flow/out/again-0"), "3\n");
    let image = site.run().plan().unwrap().lock.images["tools"].clone();
    assert!(image.digest.is_some() && image.path.is_some_and(|path| path.is_dir()));
    // The next plan calls everything by the same names: with the network, and without.
    for words in [&["submit", "flow.yaml"][..], &["submit", "flow.yaml", "--offline"]] {
        finish(&mut site.dvrun(words)).ok().complains("nothing to run");
    }
}

#[test]
fn what_cannot_be_had_fails_the_first_job_and_nothing_else_starts() {
    let Some(site) = site("2.0") else { return };
    profile(&site, "127.0.0.1:1", "args: [--hold]");
    // Without a network nobody will ever know what the image is.
    finish(&mut site.dvrun(&["submit", "flow.yaml", "--offline"]))
        .exits(3)
        .complains("tools");
    finish(&mut site.dvrun(&["submit", "flow.yaml"])).ok();
    profile(&site, &site.registry.host(), "");
    finish(&mut site.dvrun(&["release", PREPARE])).ok();
    finish(&mut site.dvrun(&["wait"])).exits(1);
    let explained = finish(&mut site.dvrun(&["explain", PREPARE])).stdout;
    assert!(explained.contains("image `tools` cannot be had"), "{explained}");
    assert!(!site.sandbox.work().join("flow/out").join("count").exists());
    let status = finish(&mut site.dvrun(&["status", "--json"])).json();
    assert_eq!(status["stages"]["twice"]["counts"]["upstream_failed"], 2, "{status:#}");
    assert!(fs::read_dir(site.run().path().join("records")).unwrap().count() >= 1);
    // Mended, the same run goes on.
    site.registry
        .push_oci(&checkout().join("workflows/quickstart/image"), "1.0", "lab/tools:2.0");
    finish(&mut site.dvrun(&["rerun", PREPARE])).ok();
    site.release_and_wait();
    assert_eq!(site.sandbox.read("flow/out/again-0"), "3\n");
}
