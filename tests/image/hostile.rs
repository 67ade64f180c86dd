//! Layers made to do harm: an error that names layer and entry, or a harmless tree; never anything outside the root.

use std::error::Error;
use std::fs;

use dvrun::image::{ImageError, Limits};

use super::Bench;
use super::seen::{names_below, on_disk};
use crate::support::layers::*;

/// The whole chain of an error, as a user would read it.
fn told(error: &ImageError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// A folder beside the root, to be reached if anything can reach out; and a check that nothing did.
struct Outside {
    bench: Bench,
}

impl Outside {
    fn new() -> Outside {
        let bench = Bench::new();
        fs::create_dir(bench.path().join("outside")).unwrap();
        fs::write(bench.path().join("outside/victim"), "untouched").unwrap();
        Outside { bench }
    }

    #[track_caller]
    fn untouched(&self) {
        let outside = self.bench.path().join("outside");
        assert_eq!(fs::read(outside.join("victim")).unwrap(), b"untouched");
        assert_eq!(names_below(&outside).len(), 1, "nothing was written outside the root");
        let mut names: Vec<_> = fs::read_dir(self.bench.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.retain(|name| !["blobs", "scratch", "outside", "out"].iter().any(|known| name == *known));
        assert!(names.is_empty(), "written beside the root: {names:?}");
    }

    /// The path of the outside folder, as an archive would say it.
    fn absolute(&self) -> String {
        self.bench.path().join("outside").display().to_string()
    }
}

#[test]
fn names_that_climb_out_are_refused() {
    for name in [
        "../outside/victim",
        "a/../../outside/victim",
        "..",
        "/../outside/victim",
        "./../../x",
    ] {
        for make in [
            |n: &str| file(n, "evil"),
            |n: &str| folder(n),
            |n: &str| symlink(n, "x"),
            |n: &str| hard_link("x", n),
        ] {
            let outside = Outside::new();
            let layer = vec![file("x0", "x"), make(name)];
            let error = outside.bench.convert(Packing::Gzip, &[layer]).expect_err(name);
            assert!(matches!(error, ImageError::Entry { .. }), "{error:?}");
            assert!(
                told(&error).contains("leads outside the image") && told(&error).contains("sha256:"),
                "{}",
                told(&error)
            );
            outside.untouched();
        }
    }
}

#[test]
fn a_planted_link_leads_nowhere() {
    for target in ["outside", "absolute", "../outside", "../../../../../../../../tmp", "/"] {
        for layers in [1, 2, 3] {
            let outside = Outside::new();
            let target = if target == "absolute" {
                outside.absolute()
            } else {
                target.to_owned()
            };
            let steps = [
                symlink("door", &target),
                file("door/victim", "evil"),
                hard_link("door/linked", "door/victim"),
                folder("door/made"),
                symlink("door/again", "/etc"),
                file("door/again/passwd", "evil"),
                whiteout("door/nothing"),
            ];
            let split: Vec<Vec<Member>> = steps.chunks(steps.len().div_ceil(layers)).map(<[Member]>::to_vec).collect();
            outside
                .bench
                .convert(Packing::Gzip, &split)
                .unwrap_or_else(|error| panic!("{target}: {}", told(&error)));
            outside.untouched();
            assert!(fs::symlink_metadata(outside.bench.out().join("door")).unwrap().is_symlink());
            assert_ne!(fs::read("/etc/passwd").unwrap(), b"evil");
            assert_eq!(
                fs::read(outside.bench.out().join("etc/passwd")).unwrap(),
                b"evil",
                "it fell inside the root"
            );
        }
    }
}

#[test]
fn a_whiteout_through_a_planted_link_removes_nothing_outside() {
    let outside = Outside::new();
    let door = symlink("door", outside.absolute());
    let layers = [vec![door], vec![whiteout("door/victim"), opaque("door"), file("kept", "k")]];
    outside.bench.convert(Packing::Zstd, &layers).unwrap();
    outside.untouched();
}

#[test]
fn a_hard_link_to_the_hosts_files_is_refused() {
    for target in ["/etc/passwd", "etc/passwd", "door/passwd"] {
        let outside = Outside::new();
        let layer = vec![symlink("door", "/etc"), hard_link("stolen", target)];
        let error = outside.bench.convert(Packing::Gzip, &[layer]).expect_err(target);
        assert!(told(&error).contains("of the hard link is not there"), "{}", told(&error));
        assert!(told(&error).contains("`stolen`"), "{}", told(&error));
        outside.untouched();
    }
}

#[test]
fn a_link_is_replaced_not_followed() {
    let outside = Outside::new();
    let victim = format!("{}/victim", outside.absolute());
    let layers = [
        vec![symlink("file", &victim), symlink("pipe", &victim)],
        vec![file("file", "mine"), member(b'6', "pipe")],
    ];
    outside.bench.convert(Packing::Plain, &layers).unwrap();
    outside.untouched();
    assert_eq!(fs::read(outside.bench.out().join("file")).unwrap(), b"mine");
    // Within one layer, and through a hard link to the link.
    let outside = Outside::new();
    let victim = format!("{}/victim", outside.absolute());
    let layer = vec![symlink("a", &victim), hard_link("b", "a"), file("a", "mine"), file("b", "mine")];
    outside.bench.convert(Packing::Plain, &[layer]).unwrap();
    outside.untouched();
}

#[test]
fn links_in_circles_end() {
    for layer in [
        vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "x")],
        vec![symlink("self", "self"), file("self/x", "x")],
        vec![symlink("in", "in/deeper"), file("in/x", "x")],
    ] {
        let outside = Outside::new();
        let error = outside.bench.convert(Packing::Gzip, &[layer]).expect_err("a circle");
        assert!(told(&error).contains("more than 40 symbolic links"), "{}", told(&error));
    }
}

#[test]
fn nonsense_in_a_layer_is_an_error_that_names_it() {
    let cases: Vec<(&str, Member, &str)> = vec![
        ("whiteout of nothing", file("a/.wh.", ""), "a whiteout has to name what it hides"),
        ("whiteout of ..", file("a/.wh...", ""), "a whiteout has to name what it hides"),
        ("whiteout of .", file("a/.wh..", ""), "a whiteout has to name what it hides"),
        ("below a whiteout", file(".wh.a/b", "x"), "below a whiteout"),
        ("the root as a file", file("./", "x"), "the root of an image is a folder"),
        ("the root as a link", symlink("/", "etc"), "the root of an image is a folder"),
        ("a link to nothing", symlink("l", ""), "needs a target"),
        ("a hard link to a folder", hard_link("h", "known"), "is a folder"),
        ("a hard link to the root", hard_link("h", "/"), "is not there"),
        ("a long part", file("n".repeat(256), "x"), "longer than 255 bytes"),
        (
            "a long path",
            file(["a-long-name"; 400].join("/"), "x"),
            "more than the 4096 allowed",
        ),
        ("deep nesting", file(["d"; 1500].join("/"), "x"), "deeper than 1024"),
        ("an unknown type", member(b'Z', "z"), "unknown entry type"),
        ("a NUL in a name", file("x", "x").pax("path", "a\0b"), "NUL"),
        (
            "a negative size in PAX",
            file("x", "x").pax("size", "-1"),
            "has a value that cannot be",
        ),
        (
            "a huge size in PAX",
            file("x", "x").pax("size", "9223372036854775807"),
            "ends within an entry",
        ),
        (
            "a size beyond the end",
            file("x", "x").pax("size", "1000000"),
            "ends within an entry",
        ),
        (
            "a size beyond the end in the header",
            Member {
                size: Some(1 << 40),
                ..file("x", "x")
            },
            "ends within an entry",
        ),
        (
            "an owner that is none",
            file("x", "x").pax("uid", "4294967295"),
            "not a number in range",
        ),
        (
            "a long PAX header",
            file("x", "x").pax("comment", "c".repeat(2 << 20)),
            "more than the 1048576 allowed",
        ),
        (
            "a long attribute name",
            file("x", "x").xattr(&"n".repeat(300), "v"),
            "has a value that cannot be",
        ),
        (
            "a device out of range",
            Member {
                device: (u32::MAX, 0),
                ..device("d", 0, 0)
            },
            "",
        ),
    ];
    for (name, member, message) in cases {
        let outside = Outside::new();
        let result = outside.bench.convert(Packing::Gzip, &[vec![folder("known"), member]]);
        if message.is_empty() {
            continue;
        }
        let error = result.err().unwrap_or_else(|| panic!("{name} is accepted"));
        let text = told(&error);
        assert!(text.contains(message) && text.contains("layer sha256:"), "{name}: {text}");
        outside.untouched();
    }
}

#[test]
fn a_lie_about_a_sparse_file_is_an_error() {
    let pax10 = |body: &str, size: &str| {
        let mut bytes = body.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(b"data");
        file("x", bytes)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.name", "x")
            .pax("GNU.sparse.realsize", size)
    };
    let old = |map: Vec<(u64, u64)>, size| Member {
        kind: b'S',
        sparse: Some((map, size)),
        ..file("x", "data")
    };
    let lies: Vec<(&str, Member)> = vec![
        ("parts overlap", pax10("2\n0\n3\n2\n1\n", "100")),
        ("parts out of order", pax10("2\n50\n2\n0\n2\n", "100")),
        ("behind the end", pax10("1\n99\n4\n", "100")),
        ("more than is stored", pax10("1\n0\n5\n", "100")),
        ("less than is stored", pax10("1\n0\n3\n", "100")),
        ("a huge count", pax10("99999999999\n", "100")),
        ("no number", pax10("one\n", "100")),
        ("a number without end", pax10(&"1".repeat(600), "100")),
        (
            "an offset beyond all sizes",
            pax10("1\n9223372036854775807\n4\n", "9223372036854775807"),
        ),
        ("old, behind the end", old(vec![(98, 4)], 100)),
        ("old, more than is stored", old(vec![(0, 5)], 100)),
        (
            "an odd map",
            file("x", "data").pax("GNU.sparse.size", "100").pax("GNU.sparse.map", "0,4,5"),
        ),
        ("no real size", file("x", "data").pax("GNU.sparse.map", "0,4")),
        (
            "two offsets",
            file("x", "data").pax("GNU.sparse.offset", "0").pax("GNU.sparse.offset", "4"),
        ),
    ];
    for (name, member) in lies {
        let bench = Bench::new();
        let error = bench
            .convert(Packing::Gzip, &[vec![member]])
            .err()
            .unwrap_or_else(|| panic!("{name} is accepted"));
        assert!(matches!(error, ImageError::Tar { .. }), "{name}: {error:?}");
        assert!(told(&error).contains("sparse"), "{name}: {}", told(&error));
    }
    let bench = Bench::new();
    bench
        .convert(Packing::Gzip, &[vec![pax10("1\n90\n4\n", "100")]])
        .expect("the truth is accepted");
}

/// Where the header's size and PAX's differ, all readers must agree on where the next entry begins (CVE-2026-33055).
#[test]
fn the_size_in_pax_decides_where_the_next_entry_begins() {
    let hidden = archive(&[file("smuggled", "evil")]);
    let member = Member {
        size: Some(0),
        ..file("shell", &hidden).pax("size", hidden.len().to_string())
    };
    let bench = Bench::new();
    bench.convert(Packing::Gzip, &[vec![member, file("after", "a")]]).unwrap();
    assert_eq!(
        on_disk(&bench.out()).into_keys().collect::<Vec<_>>(),
        [&b""[..], b"after", b"shell"]
    );
    assert_eq!(fs::read(bench.out().join("shell")).unwrap(), hidden);
    // A size on what has no body is ignored, as Go's reader does it.
    let liar = Member {
        size: Some(512),
        ..folder("folder")
    };
    bench.convert(Packing::Gzip, &[vec![liar, file("after", "a")]]).unwrap();
    assert_eq!(
        on_disk(&bench.out()).into_keys().collect::<Vec<_>>(),
        [&b""[..], b"after", b"folder"]
    );
}

#[test]
fn truncated_and_damaged_layers_are_refused() {
    let tar = archive(&[file("a", vec![1; 100_000]), file("b", "b")]);
    for packing in [Packing::Gzip, Packing::Zstd] {
        let packed = packing.pack(&tar);
        for cut in [packed.len() / 2, packed.len() - 1] {
            let bench = Bench::new();
            let mut blobs = bench.blobs(packing, std::slice::from_ref(&tar));
            blobs[0].path = bench.path().join("cut");
            fs::write(&blobs[0].path, &packed[..cut]).unwrap();
            let error = dvrun::image::convert_folder(&blobs, &bench.scratch(), &bench.out(), Limits::default()).expect_err("cut");
            assert!(matches!(error, ImageError::Inflate { .. }), "{packing:?} {cut}: {error:?}");
            assert!(!bench.out().exists(), "nothing is made of a broken layer");
        }
    }
    for cut in [100, 600, 512 + 50_000] {
        let bench = Bench::new();
        let error = bench
            .convert_tars(Packing::Gzip, &[tar[..cut].to_vec()], Limits::default())
            .expect_err("cut");
        assert!(told(&error).contains("ends within an entry"), "{cut}: {}", told(&error));
    }
    let mut damaged = tar.clone();
    damaged[20] ^= 1;
    let error = Bench::new()
        .convert_tars(Packing::Gzip, &[damaged], Limits::default())
        .expect_err("damaged");
    assert!(told(&error).contains("checksum does not match"), "{}", told(&error));
    let error = Bench::new().convert_tars(Packing::Plain, &[b"no archive at all".to_vec()], Limits::default());
    assert!(error.is_err());
}

#[test]
fn another_content_than_the_configuration_says_is_refused() {
    let bench = Bench::new();
    let tar = archive(&[file("a", "x")]);
    let mut blobs = bench.blobs(Packing::Gzip, &[tar]);
    let other = dvrun::oci::Digest::sha256(b"other");
    blobs[0].diff_id = Some(other.clone());
    let convert =
        |blobs: &[dvrun::image::LayerBlob]| dvrun::image::convert_folder(blobs, &bench.scratch(), &bench.out(), Limits::default());
    let error = convert(&blobs).expect_err("it is another layer");
    assert!(
        told(&error).contains(&other.to_string()) && told(&error).contains("configuration"),
        "{}",
        told(&error)
    );
    assert!(error.hint().is_some());
    blobs[0].diff_id = None;
    convert(&blobs).expect("without a word on it there is nothing to differ from");
}

#[test]
fn compressions_that_images_do_not_use_are_named() {
    for (magic, format) in [(&b"BZh91AY"[..], "bzip2"), (b"\xfd7zXZ\0", "xz")] {
        let error = Bench::new()
            .convert_tars(Packing::Plain, &[magic.to_vec()], Limits::default())
            .expect_err(format);
        assert!(told(&error).contains(format), "{}", told(&error));
    }
}

#[test]
fn bombs_are_stopped_at_the_limits() {
    let bomb = archive(&[file("zeros", vec![0; 8 << 20])]);
    let many = archive(&(0..2000).map(|n| file(format!("f{n}"), "")).collect::<Vec<_>>());
    let deep = archive(
        &(0..60)
            .map(|n| file(format!("{n}/{}", ["d"; 900].join("/")), ""))
            .collect::<Vec<_>>(),
    );
    let wide = archive(&(0..200).map(|n| symlink(format!("l{n}"), "t".repeat(4000))).collect::<Vec<_>>());
    let holes = archive(&[huge("hole", Sparse::Pax10, 1 << 60, &[])]);
    let limits = Limits {
        entries: 1000,
        unpacked_bytes: 4 << 20,
        index_bytes: 600_000,
        ..Limits::default()
    };
    for (name, tar, message) in [
        ("bomb", bomb, "more than 4194304 bytes unpacked"),
        ("many", many, "more than 1000 entries"),
        ("deep", deep, "more than"),
        ("wide", wide, "more than 600000 bytes of index"),
        ("holes", holes, "more than 600000 bytes of index"),
    ] {
        for packing in [Packing::Gzip, Packing::Zstd, Packing::Plain] {
            let bench = Bench::new();
            let tars = [archive(&[file("first", "f")]), tar.clone()];
            let error = bench.convert_tars(packing, &tars, limits.clone()).expect_err(name);
            assert!(told(&error).contains(message), "{name}: {}", told(&error));
            assert!(!bench.out().exists() && names_below(&bench.scratch()).is_empty());
        }
    }
}

#[test]
fn a_layer_that_never_came_is_named() {
    let bench = Bench::new();
    let layers = dvrun::image::Layers::new(3, &bench.scratch(), Limits::default());
    for (index, blob) in bench
        .blobs(Packing::Gzip, &[archive(&[]), archive(&[file("a", "a")])])
        .into_iter()
        .enumerate()
    {
        layers.add(2 * index, blob);
    }
    let error = layers.finish().err().expect("one is missing");
    assert!(matches!(error, ImageError::Missing { index: 1, count: 3 }), "{error:?}");
}
