//! Images of every form that `mksquashfs` makes, against the folder they were made of.

use std::fs;
use std::path::Path;

use dvrun::squashfs::{Codec, Node};

use super::walk::*;

#[test]
fn every_compression_and_block_size_reads_as_it_was() {
    if !mksquashfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    make_tree(&tree);
    let expected = on_disk(&tree);
    let image = dir.path().join("image");
    let forms: [(&[&str], Codec); 9] = [
        (&["-comp", "zstd", "-Xcompression-level", "3"], Codec::Zstd),
        (&["-comp", "gzip", "-b", "4096"], Codec::Gzip),
        (&["-comp", "xz", "-b", "64K"], Codec::Xz),
        (&["-comp", "lz4", "-b", "1M"], Codec::Lz4),
        (&["-comp", "zstd", "-b", "1M", "-no-fragments"], Codec::Zstd),
        (&["-comp", "gzip", "-no-fragments", "-no-xattrs", "-no-exports"], Codec::Gzip),
        (&["-comp", "gzip", "-noI", "-noD", "-noF", "-noX", "-b", "256K"], Codec::Gzip),
        (&["-comp", "zstd", "-tailends", "-no-sparse", "-b", "8K"], Codec::Zstd),
        (&["-comp", "gzip", "-always-use-fragments", "-no-duplicates"], Codec::Gzip),
    ];
    for (options, codec) in forms {
        pack(&tree, &image, options);
        let opened = open(&image);
        assert_eq!(opened.codec(), codec);
        let seen = read_all(&opened, usize::MAX).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        eprintln!("{options:?}");
        assert_same(&seen, &expected);
    }
}

#[test]
fn pieces_of_files_are_pieces_of_what_was_packed() {
    if !mksquashfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    make_tree(&tree);
    let image = dir.path().join("image");
    for options in [
        &["-comp", "zstd", "-b", "4096"][..],
        &["-comp", "gzip", "-b", "1M", "-always-use-fragments"],
    ] {
        pack(&tree, &image, options);
        let opened = open(&image);
        std::thread::scope(|scope| {
            for seed in 0..3 {
                let (opened, tree) = (&opened, &tree);
                scope.spawn(move || random_pieces(opened, tree, seed));
            }
        });
    }
}

fn random_pieces(image: &dvrun::squashfs::Squashfs, tree: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for name in ["a/noise-2500000", "a/text-131073", "sparse", "a/noise-4095"] {
        let whole = fs::read(tree.join(name)).unwrap();
        let mut inode = image.inode(image.root()).unwrap();
        for part in name.split('/') {
            let at = image.lookup(&inode, part.as_bytes()).unwrap().unwrap();
            inode = image.inode(at).unwrap();
        }
        for _ in 0..100 {
            let start = random.usize(..whole.len() + 10);
            let mut piece = vec![0xaa; random.usize(1..300_000)];
            let got = image.read(&inode, start as u64, &mut piece).unwrap();
            let expected = &whole[start.min(whole.len())..(start + piece.len()).min(whole.len())];
            assert!(piece[..got] == *expected, "{name}: {got} bytes from {start}");
        }
    }
}

#[test]
fn devices_owners_and_attributes_are_told() {
    if !mksquashfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    set_xattr(&tree.join("file"), "user.greeting", b"hello");
    let image = dir.path().join("image");
    let options = [
        "-p",
        "null c 666 7 70000 1 3",
        "-p",
        "disk b 660 0 6 259 300",
        "-p",
        "file m 640 5 6",
    ];
    pack(&tree, &image, &options);
    let opened = open(&image);
    let root = opened.inode(opened.root()).unwrap();
    let find = |name: &[u8]| opened.inode(opened.lookup(&root, name).unwrap().unwrap()).unwrap();
    let null = find(b"null");
    assert_eq!(null.node, Node::CharDevice(1 << 8 | 3));
    assert_eq!(
        (opened.id(null.uid).unwrap(), opened.id(null.gid).unwrap(), null.mode),
        (7, 70000, 0o666)
    );
    // new_encode_dev: the minor's low byte, twelve bits of the major, the rest of the minor.
    assert_eq!(find(b"disk").node, Node::BlockDevice(300 & 0xff | 259 << 8 | (300 & !0xff) << 12));
    let xattrs = opened.xattrs(&find(b"file")).unwrap();
    assert_eq!(
        (xattrs[0].name.as_slice(), xattrs[0].value.as_slice()),
        (&b"user.greeting"[..], &b"hello"[..])
    );
    assert_eq!(opened.lookup(&root, b"nothing").unwrap(), None);
    assert!(opened.id(u16::MAX).is_err());
}

#[test]
fn a_folder_of_a_hundred_thousand_files_is_searched_by_its_index() {
    if !mksquashfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("many")).unwrap();
    let name = |at: u32| format!("{at:06}");
    for at in 0..100_000 {
        fs::File::create(tree.join("many").join(name(at))).unwrap();
    }
    let image = dir.path().join("image");
    pack(&tree, &image, &["-comp", "lz4"]);
    let opened = open(&image);
    let root = opened.inode(opened.root()).unwrap();
    let many = opened.inode(opened.lookup(&root, b"many").unwrap().unwrap()).unwrap();
    // Before the whole folder has been read.
    let found: Vec<_> = [0, 1, 49_999, 99_999]
        .map(|at| opened.lookup(&many, name(at).as_bytes()).unwrap())
        .into_iter()
        .collect();
    assert_eq!(opened.lookup(&many, b"099999x").unwrap(), None);
    assert_eq!(opened.lookup(&many, b"").unwrap(), None);
    let listing = opened.list(&many).unwrap();
    assert_eq!(listing.len(), 100_000);
    for (at, inode) in [0, 1, 49_999, 99_999].into_iter().zip(found) {
        assert_eq!(
            listing.get(at as usize).map(|entry| (entry.name.to_vec(), entry.inode)),
            inode.map(|inode| (name(at).into_bytes(), inode))
        );
    }
}
