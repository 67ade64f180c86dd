//! SIFs: one that Apptainer 1.4.5 made (`apptainer build` of an image with one layer), and pieces of it.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use dvrun::sif::{Sif, SifError, is_sif};
use dvrun::squashfs::Squashfs;
use proptest::prelude::*;

use super::walk::*;
use crate::support::checkout;

fn fixture() -> PathBuf {
    checkout().join("tests/corpora/apptainer-1.4.5.sif")
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn a_sif_of_apptainer_is_read() {
    let file = File::open(fixture()).unwrap();
    assert!(is_sif(&file).unwrap());
    let sif = Sif::read(&file).unwrap();
    assert_eq!((sif.architecture, sif.objects.len(), sif.is_signed()), ("amd64", 4, false));
    let kinds: Vec<_> = sif.objects.iter().map(|object| object.description()).collect();
    assert_eq!(kinds, ["definition", "JSON", "JSON", "root file system (SquashFS)"]);
    assert!(sif.definition(&file).unwrap().unwrap().starts_with("bootstrap: docker-archive\n"));
    let execution = sif.execution(&file).unwrap();
    assert_eq!(execution.entrypoint, vec!["/bin/tool".to_owned()]);
    assert!(execution.env.contains(&"GREETING=hello there".to_owned()));
    assert_eq!(
        (execution.working_dir.as_str(), execution.labels["org.example.x"].as_str()),
        ("/etc", "y")
    );
    assert!(sif.json(&file, "inspect-metadata.json").unwrap().is_some());
    assert_eq!(sif.json(&file, "nothing").unwrap(), None);
    let image = Squashfs::open(file, sif.primary().unwrap().offset, 1 << 20).unwrap();
    let tree = read_all(&image, usize::MAX).unwrap();
    assert_eq!(tree[&PathBuf::from("etc/origin")].what, What::File(b"made by apptainer\n".to_vec()));
    assert_eq!(tree[&PathBuf::from("bin/link")].what, What::Symlink(b"../etc/origin".to_vec()));
    assert!(tree.contains_key(&PathBuf::from(".singularity.d/runscript")));
}

#[test]
fn what_is_no_sif_or_only_a_part_of_one_is_refused() {
    let whole = fs::read(fixture()).unwrap();
    for length in [0, 41, 42, 127, 128, 20_000, 36_800, whole.len() - 1] {
        let error = Sif::read(&file_of(&whole[..length])).unwrap_err();
        let expected = if length < 128 {
            matches!(error, SifError::NotSif)
        } else {
            matches!(error, SifError::Damaged(_))
        };
        assert!(expected, "{length}: {error}");
    }
    let change = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        Sif::read(&file_of(&bytes))
    };
    assert!(matches!(change(0x2b, b'9'), Err(SifError::NotSif)));
    // The fourth descriptor's file system and role.
    let extra = 4096 + 3 * 585 + 201;
    assert!(matches!(
        change(extra, 5).unwrap().primary(),
        Err(SifError::FileSystem("encrypted"))
    ));
    assert!(matches!(change(extra + 4, 3).unwrap().primary(), Err(SifError::NoPrimary)));
}

#[test]
fn changed_bytes_do_no_harm() {
    let whole = fs::read(fixture()).unwrap();
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let changes = prop::collection::vec((0..4096 + 5 * 585_usize, any::<u8>()), 1..6);
    proptest!(config, |(changes in changes)| {
        let mut bytes = whole.clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let file = file_of(&bytes);
        if let Ok(sif) = Sif::read(&file) {
            // Either may fail; neither may panic.
            let (_, _, _) = (sif.primary(), sif.execution(&file).is_ok(), sif.definition(&file).is_ok());
        }
    });
}
