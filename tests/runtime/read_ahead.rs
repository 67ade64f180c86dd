//! What a program reads when it starts is learnt by one container, and read ahead in the next.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dvrun::runtime::{Container, ImageAccess, ReadAhead, Stream};

use super::fixture::*;
use super::image_files::{Packed, damage, ready_for};
use crate::support::{Sandbox, finish};

/// More files than a container reads that is not worth a list, each in a block of its own.
const FILES: usize = 600;
/// Reads them all.
const START: &str = "cat /data/many/*";
/// Ends with the reader, which is the first process after PID 1, where there is one.
const NOTHING: &str = "while test $$ != 2 && test -d /proc/2; do sleep 0.05; done";

fn packed() -> Packed {
    let fixture = Fixture::complete();
    let many = fixture.root().join("data/many");
    fs::create_dir(&many).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for at in 0..FILES {
        let noise: String = (0..8000).map(|_| random.digit(16)).collect();
        fs::write(many.join(format!("{at:03}")), noise + "\n").unwrap();
    }
    // zlib has a checksum of every block.
    Packed::new(fixture, ImageAccess::Fuse, &["-comp", "gzip", "-no-fragments"])
}

fn lists(packed: &Packed) -> PathBuf {
    packed.fixture.folder.path().join("cache/lists")
}

fn container(packed: &Packed, script: &str) -> Container {
    Container {
        read_ahead: Some(ReadAhead {
            folder: lists(packed),
            program: "program".into(),
        }),
        ..packed.shell(script)
    }
}

fn list(packed: &Packed) -> Option<PathBuf> {
    let mut lists = fs::read_dir(lists(packed)).ok()?;
    let list = lists.next().map(|entry| entry.unwrap().path());
    assert!(lists.next().is_none(), "one image, one program, one list");
    list
}

/// A place in the image's file: data ends where its inodes begin, as its superblock says, and the last files lie before that.
fn inside_the_last_files(packed: &Packed) -> u64 {
    let mut place = [0; 8];
    File::open(packed.image()).unwrap().read_exact_at(&mut place, 64).unwrap();
    u64::from_le_bytes(place) - 50_000
}

#[test]
fn what_a_program_read_is_read_ahead_of_the_next() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let packed = packed();
    let first = run(&container(&packed, START));
    assert_eq!((first.code, first.out.lines().count()), (0, FILES), "{}", first.err);
    let list = list(&packed).expect("a list");
    let text = fs::read(&list).unwrap();
    for name in ["bin/busybox", "data/many/000", "data/many/599"] {
        assert!(text.windows(name.len()).any(|window| window == name.as_bytes()), "{name}");
    }
    assert_eq!(fs::metadata(lists(&packed)).unwrap().permissions().mode() & 0o777, 0o700);
    // The same once more shows nothing new, and something else by the same name little.
    let again = run(&container(&packed, START));
    assert_eq!((again.code, again.out), (0, first.out));
    assert_eq!(run(&container(&packed, "cat /data/file")).code, 0);
    assert_eq!(fs::read(&list).unwrap(), text);
    // A program that reads nothing: only the reader can meet the damage.
    for (damaged, told) in [(false, false), (true, true)] {
        if damaged {
            damage(&packed.image(), inside_the_last_files(&packed));
        }
        let (out, err) = (capture(), capture());
        let mut running = start_with(&container(&packed, NOTHING), Default::default(), Stream::Null, &out, &err).unwrap();
        assert!(running.wait().unwrap().status.success());
        assert_eq!(!running.damage().is_empty(), told, "{:?}", running.damage());
    }
}

#[test]
fn a_short_program_and_a_place_that_cannot_be_written_leave_no_list() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let packed = packed();
    assert_eq!(run(&container(&packed, "cat /data/many/00*")).code, 0);
    assert_eq!(list(&packed), None);
    fs::create_dir(packed.fixture.folder.path().join("cache")).unwrap();
    fs::set_permissions(packed.fixture.folder.path().join("cache"), Permissions::from_mode(0o500)).unwrap();
    let ended = run(&container(&packed, START));
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert_eq!(list(&packed), None);
}

#[test]
fn the_configuration_says_whether_lists_are_kept_and_a_profile_goes_first() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let packed = packed();
    let sandbox = Sandbox::new();
    let lists_after = |config: &str| {
        sandbox.config(config);
        let mut exec = sandbox.dvrun();
        exec.args(["exec", "--env", "PATH=/bin"]).arg(packed.image());
        finish(exec.args(["--", "sh", "-c", START])).ok();
        fs::read_dir(sandbox.cache().join("v1/read-ahead")).map_or(0, Iterator::count)
    };
    for (config, lists) in [
        ("runtime: {image_access: fuse, read_ahead: false}\n", 0),
        (
            "runtime: {image_access: fuse}\nprofile: site\nprofiles: {site: {runtime: {read_ahead: false}}}\n",
            0,
        ),
        (
            "runtime: {image_access: fuse, read_ahead: false}\nprofile: site\nprofiles: {site: {runtime: {read_ahead: true}}}\n",
            1,
        ),
    ] {
        assert_eq!(lists_after(config), lists, "{config}");
    }
    fs::remove_dir_all(sandbox.cache()).unwrap();
    assert_eq!(lists_after("runtime: {image_access: fuse}\n"), 1, "unless it says otherwise");
}

/// A list's file, as `src/runtime/read_ahead/list.rs` writes it.
fn written(paths: &[&str]) -> Vec<u8> {
    let item = |path: &&str| {
        [
            &[3][..],
            &0_u64.to_le_bytes(),
            &u64::MAX.to_le_bytes(),
            &(path.len() as u16).to_le_bytes(),
            path.as_bytes(),
        ]
        .concat()
    };
    [b"dvrahd1\n".to_vec(), paths.iter().flat_map(item).collect()].concat()
}

#[test]
fn a_list_names_what_it_likes_and_reaches_nothing_else() {
    if !ready_for(ImageAccess::Fuse) {
        return;
    }
    let packed = packed();
    assert_eq!(run(&container(&packed, START)).code, 0);
    let list = list(&packed).unwrap();
    let outside = packed.fixture.on_host("pipe");
    nix::unistd::mkfifo(&outside, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let outside = outside.to_str().unwrap();
    for text in [
        // Opened, they would hold the reader for ever.
        written(&[
            "/dev/zero",
            outside,
            &format!("../../../../../..{outside}"),
            "bin/sh",
            "data",
            "",
            "no/such/file",
            "\0",
        ]),
        b"dvrahd1\n\x01\x02".to_vec(),
        Vec::new(),
    ] {
        fs::write(&list, &text).unwrap();
        let ended = run(&container(&packed, NOTHING));
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{text:?}");
    }
    fs::remove_file(&list).unwrap();
    fs::create_dir(&list).unwrap();
    assert_eq!(run(&container(&packed, START)).code, 0);
    assert!(Path::new(&list).is_dir());
}
