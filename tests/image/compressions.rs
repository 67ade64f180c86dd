//! Every compression: what is written reads the same through our reader, `unsquashfs`, the kernel and a container's own server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dvrun::image::{Compression, SquashfsOptions};
use dvrun::squashfs::Codec;

use super::Bench;
use super::model::{Kind, Model};
use super::squashfs::{Mounted, exact, unsquashfs, write};
use crate::squashfs::walk::{What, open, read_all};
use crate::support::layers::*;
use crate::support::{Sandbox, as_root, finish, lane};

const ALL: [(Compression, Codec); 7] = [
    (Compression::None, Codec::Gzip),
    (Compression::Gzip(6), Codec::Gzip),
    (Compression::Zstd(3), Codec::Zstd),
    (Compression::Zstd(19), Codec::Zstd),
    (Compression::Lz4, Codec::Lz4),
    (Compression::Xz(0), Codec::Xz),
    (Compression::Xz(6), Codec::Xz),
];
const BLOCKS: [u32; 3] = [4096, 128 << 10, 1 << 20];

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// What fits in a block and what does not, what gets smaller and what does not, and what is not there at all.
fn members() -> Vec<Member> {
    let mut members = vec![folder("data")];
    for size in [0, 1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 1_048_577, 2_500_000] {
        let text: Vec<u8> = (0..size).map(|at| b"all work and no play\n"[at / 3 % 21]).collect();
        members.push(file(format!("data/text-{size}"), text));
        members.push(file(format!("data/noise-{size}"), noise(size, size as u64)));
    }
    members.extend([
        sparse("data/sparse", Sparse::Pax10, 3_000_000, &[(5000, b"here"), (1_500_000, b"there")]),
        // Parts that begin and end where blocks do.
        sparse(
            "data/sparse-blocks",
            Sparse::Pax10,
            2_097_152,
            &[(131_072, b"first"), (1_044_480, &[7; 4096]), (2_097_151, b"l")],
        ),
        sparse("data/sparse-nothing", Sparse::Pax10, 400_000, &[]),
        file("data/zeros", vec![0; 700_000]),
        hard_link("data/hard", "data/text-131073"),
        symlink("data/link", "text-1"),
        file("data/marked", "m").xattr("user.note", noise(300, 1)),
    ]);
    members.extend((0..500).map(|at| file(format!("data/many/{at:04}"), format!("{at}").repeat(at))));
    members
}

fn written(compression: Compression, block_size: u32) -> (Bench, PathBuf) {
    let bench = Bench::new();
    let image = write(&bench, &[members()], &SquashfsOptions { compression, block_size });
    (bench, image)
}

fn model() -> Model {
    Model::of(&super::good::as_modelled(&[members()])).expect("it has a meaning")
}

/// What differs between a model's files and what the reader finds.
fn differences(image: &Path, codec: Codec, model: &Model) -> Vec<String> {
    let opened = open(image);
    assert_eq!(opened.codec(), codec);
    let seen = read_all(&opened, usize::MAX).expect("it is sound");
    let mut found = Vec::new();
    if seen.len() != model.names.len() {
        found.push(format!("{} names instead of {}", seen.len(), model.names.len()));
    }
    for (path, id) in &model.names {
        let path = PathBuf::from(String::from_utf8(path.clone()).expect("the test's names are text"));
        let same = match (&model.nodes[*id].kind, seen.get(&path).map(|seen| &seen.what)) {
            (Kind::Folder, Some(What::Folder)) => true,
            (Kind::File(wanted), Some(What::File(bytes))) => wanted == bytes,
            (Kind::Symlink(wanted), Some(What::Symlink(target))) => wanted == target,
            _ => false,
        };
        if !same {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn our_reader_and_unsquashfs_read_what_was_written() {
    let model = model();
    for (compression, codec) in ALL {
        for block_size in BLOCKS {
            let (bench, image) = written(compression, block_size);
            assert_eq!(
                differences(&image, codec, &model),
                Vec::<String>::new(),
                "{compression:?} {block_size}"
            );
            if !unsquashfs() {
                continue;
            }
            let mut command = Command::new("unsquashfs");
            command.args(["-no-progress", "-no-xattrs", "-d"]).arg(bench.out()).arg(&image);
            finish(&mut command).ok();
            for (path, id) in &model.names {
                if let Kind::File(wanted) = &model.nodes[*id].kind {
                    let path = String::from_utf8_lossy(path);
                    assert!(
                        fs::read(bench.out().join(&*path)).unwrap() == *wanted,
                        "{compression:?} {block_size}: {path}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_kernel_reads_what_was_written_as_root() {
    if !as_root() {
        return;
    }
    let model = model();
    // The kernel finds its loop devices again by inode: all files are kept until the last is done with.
    let mut kept = Vec::new();
    for (compression, _) in ALL {
        for block_size in BLOCKS {
            let (bench, image) = written(compression, block_size);
            let mounted = Mounted::new(&image, &bench.out());
            if kept.is_empty() && !lane("mounting SquashFS: the kernel does not", mounted.is_some()) {
                return;
            }
            match mounted {
                Some(mounted) => assert_eq!(exact(mounted.path(), &model), Vec::<String>::new(), "{compression:?} {block_size}"),
                // A kernel need not be built with all of them.
                None => assert!(
                    !lane(&format!("the kernel's {compression:?}"), built_in(compression)),
                    "{compression:?} {block_size} is refused"
                ),
            }
            kept.push(bench);
        }
    }
}

/// Whether the kernel says that it has the compressor; one that does not tell its configuration has what Debian's has: all.
fn built_in(compression: Compression) -> bool {
    let option = match compression {
        Compression::None | Compression::Gzip(_) => "ZLIB",
        Compression::Zstd(_) => "ZSTD",
        Compression::Lz4 => "LZ4",
        Compression::Xz(_) => "XZ",
    };
    let config = Command::new("zcat").arg("/proc/config.gz").output().map(|output| output.stdout);
    let config = String::from_utf8(config.unwrap_or_default()).unwrap_or_default();
    config.is_empty() || config.contains(&format!("CONFIG_SQUASHFS_{option}=y"))
}

/// Type, mode, size and content of everything below `/data`.
const EVERYTHING: &str = "cd /data && find . | sort | while read -r f; do stat -c '%n %F %a' $f; test ! -f $f || md5sum < $f; done";

#[test]
fn a_container_sees_the_same_in_every_file_and_in_a_folder() {
    if !crate::runtime::fixture::ready() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut layer = vec![
        folder("bin"),
        file("bin/busybox", fs::read("/bin/busybox").unwrap()).mode(0o755),
        folder("proc"),
        folder("dev"),
        folder("tmp"),
    ];
    layer.extend(["sh", "find", "sort", "stat", "md5sum", "test"].map(|name| symlink(format!("bin/{name}"), "busybox")));
    layer.extend(members());
    let dir = sandbox.path().join("layout");
    layout(&dir, "t", Packing::Zstd, &[archive(&layer)]);
    let reference = format!("oci:{}:t", dir.display());
    let seen = |image: &str| {
        let mut command = sandbox.dvrun();
        command.args(["exec", "--env", "PATH=/bin", image, "--", "sh", "-c", EVERYTHING]);
        finish(&mut command).ok().stdout
    };
    let folder = seen(&reference);
    assert!(folder.lines().count() > 1000, "{folder}");
    for compression in ["none", "gzip", "zstd", "lz4", "xz"] {
        for format in ["sif", "squashfs"] {
            let name = format!("{compression}.{format}");
            let mut pull = sandbox.dvrun();
            pull.args(["pull", &reference, "-o", &name, "--format", format, "--compression", compression]);
            finish(&mut pull).ok();
            let file = seen(&format!("./{name}"));
            let different = file.lines().zip(folder.lines()).find(|(file, folder)| file != folder);
            assert!(file == folder, "{name}: {different:?}");
        }
    }
}
