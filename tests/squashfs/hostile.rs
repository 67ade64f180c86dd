//! Images with bytes changed: an error or other content, never a panic, an endless loop or memory without bound.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use dvrun::squashfs::{Squashfs, SquashfsError};
use proptest::prelude::*;

use super::walk::*;

fn small_tree(folder: &Path) {
    fs::create_dir_all(folder.join("a/b")).unwrap();
    for at in 0..300 {
        fs::write(folder.join(format!("a/{at}")), at.to_string().repeat(at)).unwrap();
    }
    fs::write(folder.join("large"), "0123456789".repeat(3000)).unwrap();
    set_xattr(&folder.join("large"), "user.a", b"b");
    std::os::unix::fs::symlink("a/b", folder.join("link")).unwrap();
}

fn images() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    small_tree(&tree);
    let forms: [&[&str]; 3] = [
        // Metadata as it is, so that changes reach what is behind the decompressor.
        &["-b", "4096", "-noI", "-noX", "-noF"],
        &["-comp", "zstd", "-b", "4096", "-noI"],
        &["-comp", "gzip", "-b", "8192"],
    ];
    let image = dir.path().join("image");
    forms
        .map(|options| {
            pack(&tree, &image, options);
            fs::read(&image).unwrap()
        })
        .into()
}

fn opened(bytes: &[u8]) -> Result<Squashfs, SquashfsError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Squashfs::open(file, 0, 1 << 20)
}

#[test]
fn changed_bytes_do_no_harm() {
    if !mksquashfs() {
        return;
    }
    let images = images();
    let change = (any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
    let changes = (0..images.len(), prop::collection::vec(change, 1..8));
    let config = ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |((which, changes) in changes)| {
        let mut bytes = images[which].clone();
        for (index, value, at_end) in changes {
            // Where the tables are, as often as anywhere; or in the superblock.
            let length = bytes.len();
            let at = if at_end { index.index(length.min(96)) } else { length - 1 - index.index(length.min(24_000)) };
            bytes[at] = value;
        }
        if let Ok(image) = opened(&bytes)
            && let Ok(tree) = read_all(&image, 1 << 20)
        {
            prop_assert!(tree.len() < 100_000);
        }
    });
}

#[test]
fn an_image_that_was_cut_is_refused_or_fails_where_it_ends() {
    if !mksquashfs() {
        return;
    }
    for bytes in images() {
        for length in [0, 1, 95, 96, 97, bytes.len() / 2, bytes.len() - 5000] {
            let error = match opened(&bytes[..length]) {
                Ok(image) => read_all(&image, 1 << 20).expect_err("its end is missing"),
                Err(error) => error,
            };
            assert!(
                matches!(error, SquashfsError::NotSquashfs(_) | SquashfsError::Damaged { .. }),
                "{error}"
            );
            assert!(error.hint().is_some());
        }
    }
}

#[test]
fn what_is_no_squashfs_is_said_to_be_none() {
    let refused = |bytes: &[u8]| opened(bytes).err().expect("no image").to_string();
    assert!(refused(&[0; 200]).contains("no SquashFS"));
    assert!(refused(b"hsqs").contains("too short"));
    let mut other = vec![0; 200];
    other[..4].copy_from_slice(b"hsqs");
    other[28] = 3;
    assert!(refused(&other).contains("version"));
    let file = File::open("/dev/null").unwrap();
    assert!(Squashfs::open(file, 4096, 0).is_err());
}
