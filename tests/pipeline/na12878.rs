//! Real reads through a real image from a real registry: the known variants come out.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use dvrun::oci::Digest;
use flate2::read::MultiGzDecoder;
use walkdir::WalkDir;

use super::Where;
use crate::support::{FileServer, Registry, Sandbox, assert_ordinary_user, checkout, finish, genomics, shared, slurm};

const RECORDS: usize = 249;
const DIGEST: &str = "fe6acbe2a05e8d826332040de521596d6e160188f40472cc420b301b3b6e363a";

#[test]
fn the_known_variants_come_out_here() {
    assert_ordinary_user();
    the_known_variants_come_out(Where::Here);
}

#[test]
fn the_known_variants_come_out_on_slurm() {
    assert_ordinary_user();
    if slurm().is_some() {
        the_known_variants_come_out(Where::Slurm);
    }
}

/// The reads and the real image behind servers of the test's own; gone when dropped.
pub struct Reads {
    _registry: Registry,
    pub bucket: FileServer,
    pub workflow: String,
}

impl Reads {
    /// Makes a sandbox's configuration point to them, with `more` in it.
    pub fn serve(sandbox: &Sandbox, more: &str) -> Option<Reads> {
        let (Some(shared), Some(layout), Some(registry)) = (shared(), genomics(), Registry::start()) else {
            return None;
        };
        let workflow = fs::read_to_string(checkout().join("workflows/na12878-freebayes.yaml")).expect("the workflow is there");
        let (host, name) = image(&workflow);
        registry.push_oci(&layout, "genomics", name);
        let bucket = FileServer::new(&shared.join("data/na12878"));
        sandbox.config(&format!(
            "registries:\n  \"{host}\": {{mirrors: [\"http://{}\"]}}\nmirrors:\n  \"https://storage.googleapis.com/deepvariant/quickstart-testdata/\": \"{}\"\n{more}",
            registry.host(),
            bucket.url(),
        ));
        Some(Reads {
            _registry: registry,
            bucket,
            workflow,
        })
    }
}

/// Fails unless the variants in the workflow's folder are the known ones.
#[track_caller]
pub fn known_variants(folder: &Path, what: &str) {
    let (records, digest) = genotypes(&find(folder, "merged.vcf.gz"));
    assert_eq!((records, digest.as_str()), (RECORDS, DIGEST), "{what}");
}

fn the_known_variants_come_out(place: Where) {
    let sandbox = Sandbox::new();
    let Some(reads) = Reads::serve(&sandbox, "") else { return };
    let mut sent = Vec::new();
    for shards in [1, 4] {
        let file = sandbox.write(&format!("in-{shards}/na12878-freebayes.yaml"), &reads.workflow);
        let set = format!("shards={shards}");
        finish(sandbox.dvrun().args(place.command()).arg(&file).args(["--set", &set])).ok();
        known_variants(
            file.parent().expect("a file lies in a folder"),
            &format!("{shards} shards, {place:?}"),
        );
        sent.push(reads.bucket.bytes());
    }
    assert!(sent[0] > 0, "the data did not come through the mirror rule");
    assert_eq!(sent[0], sent[1], "what the store holds was downloaded again");
}

/// The registry and the name with its tag of the workflow's one `docker://` image.
fn image(workflow: &str) -> (&str, &str) {
    let (_, rest) = workflow.split_once("docker://").expect("the image comes from a registry");
    let reference = rest
        .split(|c: char| c.is_whitespace() || c == '"' || c == '}')
        .next()
        .unwrap_or_default();
    reference.split_once('/').expect("a reference has a host and a name")
}

#[track_caller]
fn find(folder: &Path, name: &str) -> PathBuf {
    let found = WalkDir::new(folder).into_iter().flatten().find(|entry| entry.file_name() == name);
    match found {
        Some(entry) => entry.into_path(),
        None => panic!("there is no {name} in {}", folder.display()),
    }
}

/// How many records a compressed VCF file has, and the SHA-256 over `CHROM POS REF ALT GT` lines: headers hold dates.
fn genotypes(vcf: &Path) -> (usize, String) {
    let text = BufReader::new(MultiGzDecoder::new(File::open(vcf).expect("it was found")));
    let (mut records, mut genotypes) = (0, String::new());
    for line in text.lines() {
        let line = line.expect("it is gzip and text");
        if line.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let at = fields[8]
            .split(':')
            .position(|key| key == "GT")
            .expect("each record has a genotype");
        let genotype = fields[9].split(':').nth(at).expect("the sample has what the format names");
        genotypes += &format!("{} {} {} {} {genotype}\n", fields[0], fields[1], fields[3], fields[4]);
        records += 1;
    }
    (records, Digest::sha256(genotypes.as_bytes()).hex().to_owned())
}
