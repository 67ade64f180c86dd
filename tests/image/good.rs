//! Layers as they ought to be, and the odd ones that real tools write.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use dvrun::image::{Limits, NoteKind};

use super::Bench;
use super::model::Model;
use super::seen::{assert_same, expected, names_below, on_disk};
use crate::support::layers::*;
use crate::support::{finish, genomics, lane};

/// Name, layers from the lowest on, and why umoci's result differs where it does.
pub type Case = (&'static str, Vec<Vec<Member>>, Option<&'static str>);

fn base() -> Vec<Member> {
    vec![
        folder("./").mode(0o755),
        folder("etc/"),
        file("etc/passwd", "root:x:0:0").mode(0o644),
        file("etc/shadow", "secret").mode(0),
        folder("usr/"),
        folder("usr/lib/"),
        file("usr/lib/libc.so", "ELF").mode(0o755),
        symlink("lib", "usr/lib"),
        folder("data/"),
        file("data/one", "1"),
        file("data/two", "2"),
        folder("data/deep/"),
        file("data/deep/three", "3"),
    ]
}

fn long(prefix: &str, length: usize) -> String {
    let mut name = String::from(prefix);
    while name.len() < length {
        name += "/a-name-of-twenty-one";
    }
    name.truncate(length);
    name.trim_end_matches('/').to_owned()
}

pub fn corpus() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut case = |name, layers| cases.push((name, layers, None));
    case("one layer", vec![base()]);
    case("an empty layer between", vec![base(), vec![], vec![file("new", "n")]]);
    case("a whiteout of a file", vec![base(), vec![whiteout("data/one")]]);
    case("a whiteout of a folder", vec![base(), vec![whiteout("data")]]);
    case("a whiteout of a link hides the link alone", vec![base(), vec![whiteout("lib")]]);
    case(
        "a whiteout of nothing",
        vec![base(), vec![whiteout("data/none"), whiteout("none/none")]],
    );
    case(
        "a whiteout, and the same name anew",
        vec![base(), vec![whiteout("data/one"), file("data/one", "new")]],
    );
    case(
        "an opaque folder",
        vec![base(), vec![folder("data"), opaque("data"), file("data/new", "n")]],
    );
    case(
        "an opaque folder, and one of its names anew",
        vec![
            base(),
            vec![
                folder("data").mode(0o700),
                opaque("data"),
                folder("data/deep"),
                file("data/deep/four", "4"),
            ],
        ],
    );
    case(
        "a whiteout hides what three layers made",
        vec![
            base(),
            vec![file("data/one", "11")],
            vec![file("data/one", "111"), file("data/four", "4")],
            vec![whiteout("data")],
            vec![file("data/after", "5")],
        ],
    );
    case(
        "a folder over a folder keeps its content",
        vec![base(), vec![folder("data").mode(0o711).time(5)]],
    );
    case(
        "a file becomes a folder and back",
        vec![
            base(),
            vec![folder("data/one"), file("data/one/inside", "i")],
            vec![file("data/one", "file again")],
        ],
    );
    case(
        "a folder becomes a link, a link a folder",
        vec![
            base(),
            vec![symlink("data", "etc"), folder("lib"), file("lib/own", "o")],
            vec![file("data/through", "t")],
        ],
    );
    case("a link becomes a file", vec![base(), vec![file("lib", "no link any more")]]);
    case(
        "parents reached through links",
        vec![
            base(),
            vec![
                symlink("abs", "/usr/lib"),
                symlink("up", "../../../usr"),
                symlink("chain", "up/lib"),
            ],
            vec![
                file("lib/a", "a"),
                file("abs/b", "b"),
                file("up/c", "c"),
                file("chain/d", "d"),
                whiteout("lib/libc.so"),
            ],
        ],
    );
    case(
        "hard links within a layer and across layers",
        vec![
            vec![file("a", "same").mode(0o600), hard_link("b", "a")],
            vec![hard_link("sub/c", "b"), hard_link("d", "./a"), hard_link("e", "/a")],
        ],
    );
    case(
        "a hard link to a file that a later layer removes",
        vec![vec![file("a", "kept by b")], vec![hard_link("b", "a")], vec![whiteout("a")]],
    );
    case(
        "a hard link to a file that is replaced",
        vec![vec![file("a", "old"), hard_link("b", "a")], vec![file("a", "new")]],
    );
    case(
        "a hard link onto its own name",
        vec![vec![file("a", "x")], vec![hard_link("kept", "a")]],
    );
    case(
        "a hard link through a linked folder",
        vec![base(), vec![hard_link("copy", "lib/libc.so")]],
    );
    case("a hard link to a symbolic link", vec![base(), vec![hard_link("lib2", "lib")]]);
    case(
        "duplicate entries: the last wins",
        vec![vec![
            file("a", "first"),
            file("a", "second").mode(0o600),
            folder("d").mode(0o700),
            file("d/x", "x"),
            folder("d").mode(0o755),
        ]],
    );
    case(
        "unwritable folders and unreadable files",
        vec![
            vec![
                folder("sealed").mode(0o555),
                file("sealed/file", "f").mode(0),
                folder("sealed/deeper").mode(0o500),
                file("sealed/deeper/file", "f").mode(0o444),
                folder("shut").mode(0),
                file("shut/file", "f").mode(0o400),
            ],
            vec![file("sealed/second", "s"), whiteout("sealed/deeper/file")],
        ],
    );
    case(
        "long names, in PAX, GNU and ustar",
        vec![vec![
            file(long("pax", 250), "p"),
            file(long("pax", 900), "p").owner(1000, 1000),
            file(long("gnu", 300), "g").long(Long::Gnu),
            file(long("ustar", 180), "u").long(Long::Ustar),
            symlink("pax-link", long("target", 300)),
            symlink("gnu-link", long("target", 300)).long(Long::Gnu),
            hard_link("hard", long("pax", 250)),
        ]],
    );
    case(
        "names that are not UTF-8, and names with anything in them",
        vec![
            vec![
                file(b"caf\xe9", "latin"),
                file(b"\xff\xfe", "x"),
                file("new\nline", "n"),
                file("sp ace\\\"'$`", "s"),
                file("naïve-日本", "u"),
            ],
            vec![whiteout("new\nline"), file(b".wh.caf\xe9", "")],
        ],
    );
    case(
        "names of exactly the longest sort",
        vec![vec![file("n".repeat(255), "n"), symlink("l", "t".repeat(4000))]],
    );
    case(
        "attributes",
        vec![vec![
            file("note", "n").xattr("user.note", b"a\0b"),
            folder("folder").xattr("user.kind", "folder"),
            file("labelled", "l").xattr("security.selinux", "system_u:object_r:etc_t:s0"),
        ]],
    );
    case(
        "times: before 1970, after 2038",
        vec![vec![
            file("old", "o").time(-86_400),
            file("new", "n").time(4_000_000_000),
            folder("folder").time(77),
            file("folder/file", "f"),
            symlink("link", "old").time(99),
        ]],
    );
    case(
        "every name of the root",
        vec![
            vec![
                folder("/").mode(0o750),
                file("/abs", "a"),
                file("./dot", "d"),
                file("sub//twice", "t"),
                file("sub/./dot", "d"),
            ],
            vec![folder("./").mode(0o711), file("././more", "m")],
        ],
    );
    case(
        "parents that no entry describes",
        vec![vec![file("a/b/c", "c"), hard_link("x/y", "a/b/c"), symlink("p/q", "r")]],
    );
    case(
        "a folder replaces a file that entries need as a parent",
        vec![vec![file("a", "file")], vec![folder("a"), file("a/b", "b")]],
    );
    case(
        "sticky folders, FIFOs",
        vec![vec![folder("tmp").mode(0o1777), member(b'6', "pipe").mode(0o622)]],
    );
    case(
        "the old type flag",
        vec![vec![
            Member {
                kind: 0,
                ..file("old", "o")
            },
            Member {
                kind: 0,
                ..folder("old-folder/")
            },
        ]],
    );
    let because = |cases: &mut Vec<Case>, name, why, layers| cases.push((name, layers, Some(why)));
    because(
        &mut cases,
        "whiteouts last, and opaque markers last",
        "it lets them hide their own layer's entries, or not, by their order",
        vec![
            base(),
            vec![
                file("data/one", "new"),
                file("data/deep/four", "4"),
                whiteout("data/one"),
                whiteout("data/two"),
                opaque("data/deep"),
            ],
        ],
    );
    because(
        &mut cases,
        "an opaque root",
        "it refuses, or empties the root of this layer's entries too",
        vec![base(), vec![file("only", "o"), opaque("")]],
    );
    because(
        &mut cases,
        "whiteouts that are hard links, folders, links",
        "it looks at the type as well as the name",
        vec![
            base(),
            vec![
                hard_link(".wh.etc", "usr/lib/libc.so"),
                folder("data/.wh.deep"),
                symlink("data/.wh.one", "x"),
            ],
        ],
    );
    because(
        &mut cases,
        "hard links to what their own layer hides",
        "the specification has whiteouts hide lower layers whatever their order, so the target's name is gone but its file is not",
        vec![
            vec![file("a", "renamed"), folder("d"), file("d/x", "renamed too")],
            vec![whiteout("a"), whiteout("d"), hard_link("b", "a"), hard_link("c", "d/x")],
        ],
    );
    because(
        &mut cases,
        "contiguous files",
        "it does not know the type, which POSIX has read as a file",
        vec![vec![Member {
            kind: b'7',
            ..file("contiguous", "c")
        }]],
    );
    because(
        &mut cases,
        "an attribute of a file that may not be written",
        "as an ordinary user it takes the right to write away first",
        vec![vec![file("sealed", "n").mode(0o444).xattr("user.note", "sealed")]],
    );
    because(
        &mut cases,
        "an attribute without a value",
        "Go's reader takes an empty PAX record for one that is taken back",
        vec![vec![file("note", "n").xattr("user.empty", "")]],
    );
    because(
        &mut cases,
        "devices and set-ID files",
        "as an ordinary user it keeps what it can in another way",
        vec![vec![
            device("dev/null", 1, 3).mode(0o666),
            Member {
                kind: b'4',
                ..device("dev/sda", 8, 0)
            },
            file("su", "s").mode(0o4755),
            folder("shared").mode(0o2775),
        ]],
    );
    because(
        &mut cases,
        "traces of AUFS",
        "it takes them for whiteouts",
        vec![vec![
            folder(".wh..wh.plnk"),
            file(".wh..wh.plnk/17.3", "linked"),
            hard_link("one", ".wh..wh.plnk/17.3"),
            hard_link("two", ".wh..wh.plnk/17.3"),
            file(".wh..wh.aufs", ""),
            folder(".wh..wh.orph"),
        ]],
    );
    because(
        &mut cases,
        "sparse files of all formats",
        "Go's reader refuses the sparse formats where a hole is at the end or there is nothing but holes, or fills the holes",
        vec![
            [Sparse::OldGnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10]
                .into_iter()
                .flat_map(|how| {
                    let many: Vec<(u64, &[u8])> = (0..60).map(|n| (n * 4096, &b"part"[..])).collect();
                    [
                        sparse(
                            &format!("{how:?}-parts"),
                            how,
                            300_000,
                            &[(0, b"head"), (100_000, b"middle"), (299_996, b"tail")],
                        ),
                        sparse(&format!("{how:?}-hole"), how, 50_000, &[]),
                        sparse(&format!("{how:?}-hole-at-the-end"), how, 50_000, &[(4096, b"x"), (50_000, b"")]),
                        sparse(&format!("{how:?}-many"), how, 60 * 4096, &many),
                    ]
                })
                .collect(),
        ],
    );
    cases
}

/// Cases that AUFS's traces are in: the model knows them only as files that other names link to.
pub fn as_modelled(layers: &[Vec<Member>]) -> Vec<Vec<Member>> {
    let mut layers = layers.to_vec();
    for layer in &mut layers {
        if layer.iter().any(|member| member.name.starts_with(b".wh..wh.plnk/")) {
            layer.retain(|member| !member.name.starts_with(b".wh..wh."));
            layer[0] = file("one", "linked");
            layer[1].link = b"one".to_vec();
        }
    }
    layers
}

#[test]
fn every_good_stack_is_what_the_model_says() {
    for (at, (name, layers, _)) in corpus().iter().enumerate() {
        let bench = Bench::new();
        let packing = Packing::ALL[at % Packing::ALL.len()];
        bench.convert(packing, layers).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let model = Model::of(&as_modelled(layers)).unwrap_or_else(|_| panic!("{name} has a meaning"));
        assert_same(name, &on_disk(&bench.out()), &expected(&model));
        assert_eq!(names_below(&bench.scratch()), [""; 0], "{name}: scratch is empty");
    }
}

#[test]
fn umoci_sees_the_same() {
    let there = Command::new("umoci").arg("--version").output().is_ok();
    if !lane("umoci: not installed", there) {
        return;
    }
    for (name, layers, wrong) in corpus() {
        if wrong.is_some() {
            continue;
        }
        let bench = Bench::new();
        bench
            .convert(Packing::Gzip, &layers)
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let image = bench.path().join("layout");
        let tars: Vec<Vec<u8>> = layers.iter().map(|layer| archive(layer)).collect();
        layout(&image, "latest", Packing::Gzip, &tars);
        let bundle = bench.path().join("bundle");
        let mut umoci = Command::new("umoci");
        umoci
            .args(["unpack", "--rootless", "--image"])
            .arg(format!("{}:latest", image.display()))
            .arg(&bundle);
        finish(&mut umoci).ok();
        let mut theirs = on_disk(&bundle.join("rootfs"));
        let ours = on_disk(&bench.out());
        // Folders that no layer describes are as old as umoci's run; so is one whose content it changed later.
        for (path, entry) in &mut theirs {
            if let Some(our) = ours.get(path).filter(|our| our.kind == "folder") {
                entry.mtime = our.mtime;
            }
        }
        assert_same(&format!("umoci: {name}"), &ours, &theirs);
    }
}

#[test]
fn umoci_sees_the_same_in_a_real_image() {
    let Some(image) = genomics() else { return };
    let bench = Bench::new();
    let store = dvrun::store::Store::new(&bench.path().join("cache"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let source = format!("oci:{}:genomics", image.display());
    let stored = runtime
        .block_on(super::store::fetch_source(&store, &source, &dvrun::net::silent))
        .expect("it is a good image");
    let bundle = bench.path().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci
        .args(["unpack", "--rootless", "--image"])
        .arg(format!("{}:genomics", image.display()))
        .arg(&bundle);
    finish(&mut umoci).ok();
    let ours = on_disk(stored.root().path());
    assert!(ours.len() > 1000, "{}", ours.len());
    let mut theirs = on_disk(&bundle.join("rootfs"));
    // It keeps set-ID bits, which would give the caller's rights away: ours are noted and left out.
    theirs.values_mut().for_each(|entry| entry.mode &= 0o1777);
    assert!(
        stored.info.notes.iter().any(|note| note.contains("set-user-ID")),
        "{:?}",
        stored.info.notes
    );
    assert_same("a real image", &ours, &theirs);
}

#[test]
fn every_packing_of_a_layer_is_the_same_layer() {
    let layers = [base(), vec![whiteout("data/one"), file("big", vec![7; 3 << 20])]];
    let wanted = expected(&Model::of(&layers).expect("it has a meaning"));
    for packing in Packing::ALL {
        let bench = Bench::new();
        bench.convert(packing, &layers).unwrap();
        assert_same(&format!("{packing:?}"), &on_disk(&bench.out()), &wanted);
    }
}

#[test]
fn what_follows_the_end_marker_is_hashed_and_not_read() {
    let mut tar = archive(&[file("a", "x")]);
    tar.extend(archive(&[file("hidden", "never")]));
    tar.extend(vec![9; 100_000]);
    let bench = Bench::new();
    bench.convert_tars(Packing::Gzip, &[tar], Limits::default()).unwrap();
    assert_eq!(on_disk(&bench.out()).keys().collect::<Vec<_>>(), [&b""[..], b"a"]);
}

#[test]
fn an_archive_may_end_without_its_marker() {
    for cut in [512, 1024] {
        let mut tar = archive(&[file("a", "x")]);
        tar.truncate(tar.len() - cut);
        let bench = Bench::new();
        bench.convert_tars(Packing::Zstd, &[tar], Limits::default()).unwrap();
        assert_eq!(fs::read(bench.out().join("a")).unwrap(), b"x");
    }
}

#[test]
fn losses_are_noted_once_a_kind() {
    let bench = Bench::new();
    let layer = vec![
        device("dev/null", 1, 3),
        device("dev/zero", 1, 5),
        file("su", "s").mode(0o4755),
        file("ping", "p").xattr("security.capability", "\u{1}"),
        file("plain", "p").mode(0o755),
    ];
    let converted = bench.convert(Packing::Plain, &[layer]).unwrap();
    let notes: Vec<_> = converted
        .notes
        .iter()
        .map(|note| (note.kind, note.count, note.first.as_str()))
        .collect();
    assert_eq!(
        notes,
        [
            (NoteKind::Xattr, 1, "ping"),
            (NoteKind::SetId, 1, "su"),
            (NoteKind::Device, 2, "dev/null")
        ]
    );
    assert_eq!((converted.files, converted.bytes), (6, 3));
    let plain = bench.convert(Packing::Plain, &[vec![file("plain", "p")]]).unwrap();
    assert!(plain.notes.is_empty(), "nothing is lost, nothing is said");
}

#[test]
fn a_sparse_file_of_8_gib_takes_no_space() {
    let hole = 8 << 30;
    let member = huge("hole", Sparse::Pax10, hole + 4, &[(hole, b"tail")]);
    let bench = Bench::new();
    let converted = bench.convert(Packing::Gzip, &[vec![member]]).unwrap();
    assert_eq!(converted.bytes, 4);
    let meta = fs::metadata(bench.out().join("hole")).unwrap();
    assert_eq!(meta.len(), hole + 4);
    assert!(meta.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", meta.blocks());
}

#[test]
fn a_hundred_thousand_files_in_one_folder() {
    let layer: Vec<Member> = (0..100_000).map(|n| file(format!("many/{n:06}"), n.to_string())).collect();
    let bench = Bench::new();
    let converted = bench
        .convert(Packing::Zstd, &[layer, vec![whiteout("many/000007"), file("many/new", "n")]])
        .unwrap();
    assert_eq!(converted.files, 100_001);
    assert_eq!(fs::read_dir(bench.out().join("many")).unwrap().count(), 100_000);
    assert_eq!(fs::read(bench.out().join("many/099999")).unwrap(), b"99999");
    assert!(!bench.out().join("many/000007").exists());
}

#[test]
fn three_hundred_layers() {
    let layers: Vec<Vec<Member>> = (0..300)
        .map(|n| match n % 3 {
            0 => vec![file(format!("layer/{n}"), n.to_string()), file("last", n.to_string())],
            1 => vec![hard_link(format!("links/{n}"), format!("layer/{}", n - 1))],
            _ => vec![whiteout(&format!("layer/{}", n - 2))],
        })
        .collect();
    let bench = Bench::new();
    bench.convert(Packing::Gzip, &layers).unwrap();
    assert_same(
        "300 layers",
        &on_disk(&bench.out()),
        &expected(&Model::of(&layers).expect("it has a meaning")),
    );
    assert_eq!(fs::read_dir(bench.out().join("links")).unwrap().count(), 100);
}
