//! SquashFS as `unsquashfs` and the kernel read it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dvrun::image::{Compression, SquashfsOptions, write_squashfs};

use super::Bench;
use super::good::{as_modelled, corpus};
use super::model::{Kind, Model};
use super::seen::{SeenTree, assert_same, on_disk};
use crate::squashfs::walk::open;
use crate::support::layers::*;
use crate::support::{as_root, finish, lane, wait_until};

const COMPRESSIONS: [Compression; 5] = [
    Compression::Zstd(3),
    Compression::Gzip(6),
    Compression::None,
    Compression::Lz4,
    Compression::Xz(1),
];

pub fn unsquashfs() -> bool {
    lane(
        "unsquashfs: not installed",
        Command::new("unsquashfs").arg("-version").output().is_ok(),
    )
}

pub fn write(bench: &Bench, layers: &[Vec<Member>], options: &SquashfsOptions) -> PathBuf {
    let merged = bench.merge(Packing::Gzip, layers).expect("the layers are good");
    let path = bench.path().join("image.squashfs");
    let file = File::create(&path).unwrap();
    let written = write_squashfs(&merged, &file, 0, options).unwrap();
    assert_eq!(file.metadata().unwrap().len(), written.bytes);
    path
}

/// Type and permissions, owner and time of every name, as `ls -ln` would show them; targets of links.
type Listing = BTreeMap<String, (String, String, String, Option<String>)>;

fn listed(image: &Path) -> Listing {
    let listing = finish(Command::new("unsquashfs").args(["-lln", "-d", "root"]).arg(image).env("TZ", "UTC")).ok();
    let lines = listing.stdout.lines().filter(|line| line.contains(" root"));
    lines
        .map(|line| {
            let (front, name) = line.split_once(" root").expect("filtered");
            let fields: Vec<&str> = front.split_whitespace().collect();
            let (name, target) = match name.split_once(" -> ") {
                Some((name, target)) => (name, Some(target.to_owned())),
                None => (name, None),
            };
            let time = fields[fields.len() - 2..].join(" ");
            (
                name.trim_start_matches('/').to_owned(),
                (fields[0].to_owned(), fields[1].to_owned(), time, target),
            )
        })
        .collect()
}

fn permissions(kind: char, mode: u32) -> String {
    let mut text = String::from(kind);
    for (shift, special, letters) in [(6, 0o4000, ['s', 'S']), (3, 0o2000, ['s', 'S']), (0, 0o1000, ['t', 'T'])] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letters[0],
            (true, false) => letters[1],
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn modelled_listing(model: &Model) -> Listing {
    let entries = model.names.iter().map(|(path, id)| {
        let node = &model.nodes[*id];
        let (kind, target) = match &node.kind {
            Kind::Folder => ('d', None),
            Kind::File(_) => ('-', None),
            Kind::Symlink(target) => ('l', Some(String::from_utf8_lossy(target).into_owned())),
            Kind::Char(..) => ('c', None),
            Kind::Block(..) => ('b', None),
            Kind::Fifo => ('p', None),
        };
        let seconds = node.mtime.clamp(0, u32::MAX.into());
        let time = jiff::Timestamp::from_second(seconds)
            .expect("in range")
            .strftime("%Y-%m-%d %H:%M")
            .to_string();
        let entry = (permissions(kind, node.mode), format!("{}/{}", node.uid, node.gid), time, target);
        (String::from_utf8_lossy(path).into_owned(), entry)
    });
    entries.collect()
}

/// What an extraction of the whole model looks like, owners and privileged things apart.
fn modelled_tree(model: &Model) -> SeenTree {
    let mut tree = super::seen::expected(model);
    let devices: Vec<Vec<u8>> = model
        .names
        .iter()
        .filter(|(_, id)| matches!(model.nodes[**id].kind, Kind::Char(..) | Kind::Block(..)))
        .map(|(path, _)| path.clone())
        .collect();
    for path in devices {
        tree.remove(&path);
    }
    for entry in tree.values_mut() {
        entry.mtime = entry.mtime.clamp(0, u32::MAX.into());
    }
    tree
}

#[test]
fn a_hole_of_a_tebibyte_is_not_looked_at() {
    const TIB: u64 = 1 << 40;
    let large = huge("large", Sparse::Pax10, TIB + 5, &[(TIB / 2 + 1, b"middle"), (TIB + 1, b"tail")]);
    let bench = Bench::new();
    let image = write(&bench, &[vec![large]], &SquashfsOptions::default());
    assert!(image.metadata().unwrap().len() < 1 << 20, "the sizes of its blocks alone");
    let image = open(&image);
    let root = image.inode(image.root()).unwrap();
    let file = image.inode(image.lookup(&root, b"large").unwrap().expect("it is there")).unwrap();
    assert_eq!(file.size(), TIB + 5);
    let block = u64::from(image.block_size());
    assert_eq!(image.parts(&file).unwrap(), [TIB / 2..TIB / 2 + block, TIB..TIB + 5]);
    for (offset, expected) in [
        (0, &[0; 8][..]),
        (TIB / 2 - 1, b"\0\0middle\0"),
        (TIB - 4, &[0; 5]),
        (TIB + 1, b"tail"),
    ] {
        let mut bytes = vec![1; expected.len()];
        assert_eq!(image.read(&file, offset, &mut bytes).unwrap(), expected.len());
        assert_eq!(bytes, expected, "from {offset} on");
    }
}

#[test]
fn unsquashfs_sees_what_the_model_says() {
    if !unsquashfs() {
        return;
    }
    for (at, (name, layers, _)) in corpus().iter().enumerate() {
        let bench = Bench::new();
        let options = SquashfsOptions {
            compression: COMPRESSIONS[at % 5],
            block_size: [4096, 128 << 10, 1 << 20][at % 3],
        };
        let image = write(&bench, layers, &options);
        let model = Model::of(&as_modelled(layers)).expect("it has a meaning");
        if !model
            .names
            .keys()
            .any(|path| path.contains(&b'\n') || std::str::from_utf8(path).is_err())
        {
            assert_eq!(listed(&image), modelled_listing(&model), "{name}");
        }
        let out = bench.out();
        // An ordinary user's stops at an attribute of a file that may not be written, and its status is 2 where it could not make a
        // device.
        let root = nix::unistd::geteuid().is_root();
        let xattrs = if root { "-user-xattrs" } else { "-no-xattrs" };
        let extracted = finish(
            Command::new("unsquashfs")
                .args(["-no-progress", xattrs, "-d"])
                .arg(&out)
                .arg(&image),
        );
        assert!(matches!(extracted.status.code(), Some(0 | 2)), "{name}: {extracted:#}");
        let mut seen = on_disk(&out);
        seen.retain(|path, _| {
            !matches!(
                model.names.get(path).map(|id| &model.nodes[*id].kind),
                Some(Kind::Char(..) | Kind::Block(..))
            )
        });
        for entry in seen.values_mut().filter(|entry| entry.kind != "link") {
            entry.mode &= if entry.kind == "folder" { 0o1777 } else { 0o777 };
        }
        let mut wanted = modelled_tree(&model);
        if !root {
            wanted.values_mut().for_each(|entry| entry.xattrs.clear());
        }
        assert_same(name, &seen, &wanted);
    }
}

#[test]
fn the_kernel_sees_what_the_model_says_as_root() {
    if !as_root() {
        return;
    }
    let mut benches = Vec::new();
    for (at, (name, layers, _)) in corpus().iter().enumerate() {
        // All of them are kept to the end: the kernel's loop devices are found again by inode, and a new file may get an old one's.
        benches.push(Bench::new());
        let bench = &benches[at];
        let options = SquashfsOptions {
            compression: COMPRESSIONS[at % 5],
            ..Default::default()
        };
        let image = write(bench, layers, &options);
        let model = Model::of(&as_modelled(layers)).expect("it has a meaning");
        let mounted = Mounted::new(&image, &bench.out());
        if at == 0 && !lane("mounting SquashFS: the kernel does not", mounted.is_some()) {
            return;
        }
        let mounted = mounted.unwrap_or_else(|| panic!("{name}: the kernel refuses it"));
        assert_eq!(exact(&mounted.0, &model), Vec::<String>::new(), "{name}");
    }
}

/// A mounted image; unmounted when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(image: &Path, on: &Path) -> Option<Mounted> {
        fs::create_dir(on).expect("the test owns the folder");
        let mut command = Command::new("mount");
        command.args(["-t", "squashfs", "-o", "loop,ro"]).arg(image).arg(on);
        let done = command.output().is_ok_and(|output| output.status.success());
        done.then(|| Mounted(on.to_owned()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A program that another test is about to start has, for a moment, a copy of every descriptor that was open here.
        let mut command = Command::new("umount");
        command.arg(&self.0).stderr(Stdio::null());
        wait_until("the image can be unmounted", Duration::from_secs(60), || {
            command.status().is_ok_and(|status| status.success())
        });
    }
}

/// Every way in which a mounted tree differs from the model.
pub fn exact(root: &Path, model: &Model) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt;
    let mut differences = Vec::new();
    let found = walkdir::WalkDir::new(root).into_iter().count();
    if found != model.names.len() {
        differences.push(format!("{found} names instead of {}", model.names.len()));
    }
    let mut inodes: BTreeMap<u64, usize> = BTreeMap::new();
    for (path, id) in &model.names {
        let node = &model.nodes[*id];
        let place = root.join(std::ffi::OsStr::from_bytes(path));
        let Ok(meta) = fs::symlink_metadata(&place) else {
            differences.push(format!("{} is missing", place.display()));
            continue;
        };
        let (kind, content) = match &node.kind {
            Kind::Folder => (libc::S_IFDIR, None),
            Kind::File(content) => (libc::S_IFREG, Some(content.clone())),
            Kind::Symlink(target) => (libc::S_IFLNK, Some(target.clone())),
            Kind::Char(major, minor) => (libc::S_IFCHR, Some(format!("{major}:{minor}").into_bytes())),
            Kind::Block(major, minor) => (libc::S_IFBLK, Some(format!("{major}:{minor}").into_bytes())),
            Kind::Fifo => (libc::S_IFIFO, None),
        };
        let is = match kind {
            libc::S_IFREG => Some(fs::read(&place).expect("root reads all")),
            libc::S_IFLNK => Some(fs::read_link(&place).expect("a link").as_os_str().as_bytes().to_vec()),
            libc::S_IFCHR | libc::S_IFBLK => Some(format!("{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev())).into_bytes()),
            _ => None,
        };
        let should = (kind | node.mode, node.uid, node.gid, node.mtime.clamp(0, u32::MAX.into()));
        if (meta.mode(), meta.uid(), meta.gid(), meta.mtime()) != should || is != content {
            differences.push(format!(
                "{}: {:o} {}/{} @{} instead of {should:?}",
                place.display(),
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime()
            ));
        }
        for (name, value) in &node.xattrs {
            let mut buffer = vec![0_u8; 64 << 10];
            let length = rustix::fs::lgetxattr(&place, &name[..], &mut buffer[..]);
            if length.map(|length| &buffer[..length]) != Ok(&value[..]) {
                differences.push(format!("{}: attribute {}", place.display(), String::from_utf8_lossy(name)));
            }
        }
        let links = model.names.values().filter(|other| *other == id).count() as u64;
        if node.kind != Kind::Folder && (meta.nlink() != links || *inodes.entry(meta.ino()).or_insert(*id) != *id) {
            differences.push(format!("{}: {} links instead of {links}", place.display(), meta.nlink()));
        }
    }
    differences
}

#[test]
fn the_same_layers_give_the_same_bytes_and_equal_files_are_stored_once() {
    let noise: Vec<u8> = (0..600_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let once = vec![vec![file("a", &noise), file("small", "s")]];
    let twice = vec![
        vec![file("a", &noise), file("small", "s")],
        vec![file("b", &noise), file("small2", "s"), file("c", &noise[4..])],
    ];
    let bytes = |layers: &[Vec<Member>]| {
        let bench = Bench::new();
        fs::read(write(&bench, layers, &SquashfsOptions::default())).unwrap()
    };
    assert_eq!(bytes(&twice), bytes(&twice));
    let (one, two) = (bytes(&once).len(), bytes(&twice).len());
    assert!(
        two - one < noise.len() + 10_000 && two - one > noise.len() / 2,
        "b is a's, c is its own: {one}, {two}"
    );
}

#[test]
fn a_large_folder_can_be_searched() {
    if !unsquashfs() {
        return;
    }
    let layer: Vec<Member> = (0..40_000)
        .map(|n| file(format!("many/a-rather-long-name-for-a-file-{n:06}"), n.to_string()))
        .collect();
    let bench = Bench::new();
    let image = write(&bench, &[layer], &SquashfsOptions::default());
    let cat = |name: &str| finish(Command::new("unsquashfs").arg("-cat").arg(&image).arg(name));
    for n in [0, 1, 255, 256, 20_000, 39_999] {
        let found = cat(&format!("many/a-rather-long-name-for-a-file-{n:06}")).ok();
        assert_eq!(found.stdout, n.to_string());
    }
    assert_eq!(listed(&image).len(), 40_002);
}

#[test]
fn a_file_of_8_gib_that_is_a_hole_takes_nothing() {
    if !unsquashfs() {
        return;
    }
    let hole = 8_u64 << 30;
    let member = file("GNUSparseFile.0/hole", [&b"1\n8589934592\n4\n"[..], &[0; 497], b"tail"].concat())
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "hole")
        .pax("GNU.sparse.realsize", (hole + 4).to_string());
    let bench = Bench::new();
    let image = write(&bench, &[vec![member]], &SquashfsOptions::default());
    assert!(fs::metadata(&image).unwrap().len() < 1 << 20);
    finish(
        Command::new("unsquashfs")
            .arg("-no-progress")
            .arg("-d")
            .arg(bench.out())
            .arg(&image),
    )
    .ok();
    assert_eq!(fs::metadata(bench.out().join("hole")).unwrap().size(), hole + 4);
}
