//! Random stacks of layers: whatever the model says of them is what comes out.

use std::fs;
use std::path::Path;

use dvrun::image::{Compression, SquashfsOptions};
use proptest::prelude::*;

use super::Bench;
use super::model::Model;
use super::seen::{assert_same, expected, on_disk};
use super::squashfs::write;
use crate::squashfs::walk::{What, open, read_all};
use crate::support::layers::*;

/// Few names, so that layers meet.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        path(),
        path().prop_map(|path| format!("/{path}")),
        path().prop_map(|path| format!("../{path}")),
        path().prop_map(|path| format!("../../{path}/..")),
    ]
}

fn any_member() -> impl Strategy<Value = Member> {
    let mode = prop_oneof![Just(0o755), Just(0o555), Just(0o644), Just(0), Just(0o1777)];
    prop_oneof![
        4 => (path(), "[a-z]{0,9}", mode.clone(), 0..9_i64).prop_map(|(p, body, mode, t)| file(p, body).mode(mode).time(t)),
        3 => (path(), mode, 0..9_i64).prop_map(|(p, mode, t)| folder(p).mode(mode).time(t)),
        2 => (path(), target()).prop_map(|(p, t)| symlink(p, t)),
        2 => (path(), path()).prop_map(|(p, t)| hard_link(p, t)),
        2 => path().prop_map(|p| whiteout(&p)),
        1 => path().prop_map(|p| opaque(&p)),
        1 => path().prop_map(|p| member(b'6', p)),
        1 => path().prop_map(|p| device(p, 1, 3)),
    ]
}

/// The size of a block of the images here.
const BLOCK: u64 = 4096;

/// A file with holes: parts that begin and end at the edges of blocks and beside them, some of them empty or of zeros.
fn with_holes() -> impl Strategy<Value = Member> {
    let length = || {
        (0..4_u64, prop_oneof![Just(-1_i64), Just(0), Just(1), Just(77)])
            .prop_map(|(blocks, more)| (blocks * BLOCK).saturating_add_signed(more))
    };
    let parts = prop::collection::vec((length(), length(), 0..3_u8), 0..5);
    (parts, length()).prop_map(|(parts, rest)| {
        let mut end = 0;
        let parts: Vec<(u64, Vec<u8>)> = parts
            .into_iter()
            .map(|(hole, length, byte)| {
                let at = end + hole;
                end = at + length;
                (at, vec![byte; usize::try_from(length).expect("a few blocks")])
            })
            .collect();
        let parts: Vec<(u64, &[u8])> = parts.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        sparse("with-holes", Sparse::Pax10, end + rest, &parts)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_stack_is_what_the_model_says(layers in prop::collection::vec(prop::collection::vec(any_member(), 0..12), 1..5)) {
        let bench = Bench::new();
        let converted = bench.convert(Packing::Plain, &layers);
        match (Model::of(&layers), converted) {
            (Ok(model), Ok(_)) => assert_same("random", &on_disk(&bench.out()), &expected(&model)),
            (Err(_), Err(_)) => {}
            (Ok(_), Err(error)) => panic!("the model sees a meaning: {error:?}"),
            (Err(_), Ok(_)) => panic!("the model sees no meaning"),
        }
    }

    #[test]
    fn a_file_with_holes_is_what_it_was(member in with_holes()) {
        let (name, content) = member.real.clone().expect("a sparse file has it");
        let bench = Bench::new();
        let options = SquashfsOptions { compression: Compression::None, block_size: u32::try_from(BLOCK).expect("it fits") };
        let packed = read_all(&open(&write(&bench, &[vec![member.clone()]], &options)), usize::MAX).expect("it is sound");
        assert_eq!(packed[Path::new(&String::from_utf8(name).expect("the test's own"))].what, What::File(content.clone()));
        bench.convert(Packing::Plain, &[vec![member]]).expect("it is good");
        assert!(fs::read(bench.out().join("with-holes")).expect("it was made") == content);
    }

    /// Whatever the bytes are: an error or a tree, no panic.
    #[test]
    fn a_damaged_archive_never_panics(
        members in prop::collection::vec(any_member(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut tar = archive(&members);
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        let bench = Bench::new();
        drop(bench.convert_tars(Packing::Plain, &[tar], dvrun::image::Limits::default()));
    }
}
