//! What is done with bytes that nobody vouches for. Each of these may find nothing but errors in them; it must not panic, must end,
//! and must not take memory or disk that the bytes do not pay for.

use std::fs::File;
use std::io::Write;

use dvrun::image::tar::Reader;
use dvrun::image::{LayerBlob, Layers, Limits, Merged, Node, Tree};
use dvrun::oci::Digest;
use dvrun::sif::{self, Sif};
use dvrun::squashfs::Squashfs;

/// So that a bomb is an error and not an hour.
fn limits() -> Limits {
    Limits {
        entries: 20_000,
        unpacked_bytes: 64 << 20,
        index_bytes: 64 << 20,
        ..Limits::default()
    }
}

/// Of a file system's file: holes may make it as large as they like.
const READ: u64 = 1 << 20;
/// Of all its files.
const FILES: usize = 500;

/// A layer's archive, entry by entry. Headers get the checksums that they should have: without, hardly any change would be looked at.
pub fn tar_index(bytes: &[u8]) {
    let mut archive = bytes.to_vec();
    for header in archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    let mut reader = Reader::new(&archive[..], &limits());
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(entry.path.len() as u64 <= limits().pax_bytes, "a name longer than what holds it");
    }
}

/// Layers of an image, merged. The bytes say what is in the layers ([`layers`]), so that each is one that an archive may hold.
pub fn merge(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let archives = layers(bytes);
    let layers = Layers::new(archives.len(), folder.path(), limits());
    for (at, archive) in archives.iter().enumerate() {
        let path = folder.path().join(at.to_string());
        std::fs::write(&path, archive).expect("the temporary folder is writable");
        let blob = LayerBlob {
            path,
            digest: Digest::sha256(archive),
            diff_id: None,
        };
        layers.add(at, blob);
    }
    if let Ok(merged) = layers.finish() {
        assert_sound(&merged.tree);
    }
}

/// Reads a SquashFS as a tree, and what is in its files.
pub fn squashfs(bytes: &[u8]) {
    let Ok(image) = Squashfs::open(file(bytes), 0, 1 << 20) else {
        return;
    };
    let mut folders = vec![image.root()];
    let mut files = 0;
    while let Some(at) = folders.pop() {
        let Ok(inode) = image.inode(at) else { continue };
        let Ok(listing) = image.list(&inode) else { continue };
        for entry in listing.iter() {
            files += 1;
            let Ok(inode) = image.inode(entry.inode) else { continue };
            let mut content = vec![0; usize::try_from(inode.size().min(READ)).expect("limited just now")];
            if let Ok(read) = image.read(&inode, 0, &mut content) {
                assert!(read <= content.len());
            }
            // An error is as good as attributes.
            drop(image.xattrs(&inode));
            folders.push(entry.inode);
        }
        if files > FILES {
            break;
        }
    }
    let Ok(image) = Squashfs::open(file(bytes), 0, 1 << 20) else {
        return;
    };
    if let Ok(merged) = Merged::from_squashfs(image, "fuzzed") {
        assert_sound(&merged.tree);
    }
}

/// Reads a SIF, and the SquashFS that it says it holds.
pub fn sif(bytes: &[u8]) {
    let file = file(bytes);
    let known = sif::is_sif(&file).expect("the file can be read");
    let Ok(sif) = Sif::read(&file) else { return };
    assert!(known, "it was read as what it is not");
    drop((sif.execution(&file), sif.definition(&file), sif.json(&file, "oci-config.json")));
    if let Ok(primary) = sif.primary() {
        drop(Squashfs::open(file, primary.offset, 1 << 20));
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("the temporary folder is writable");
    file.write_all(bytes).expect("the temporary folder is writable");
    file
}

/// Names of the members that [`layers`] makes, those that mean something among them.
const NAMES: [&str; 16] = [
    "a",
    "b",
    "c",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    "..",
    ".",
    ".wh.",
    "a/b",
    "a/../b",
    "/a",
    "b//c",
    "c/a/b",
    "",
    ".wh..wh.plnk",
];

/// Archives of up to four layers: a member for each four bytes, which are its kind, two names that are joined, and a name that it links
/// to; the kinds beyond those of tar begin the next layer.
fn layers(bytes: &[u8]) -> Vec<Vec<u8>> {
    let new = || tar::Builder::new(Vec::new());
    let mut archives = vec![new()];
    for member in bytes.chunks_exact(4).take(400) {
        let name = |byte: u8| NAMES[usize::from(byte) % NAMES.len()];
        let path = match member[2] {
            0..64 => name(member[1]).to_owned(),
            second => format!("{}/{}", name(member[1]), name(second)),
        };
        let kind = match member[0] % 8 {
            0 => tar::EntryType::Regular,
            1 => tar::EntryType::Directory,
            2 => tar::EntryType::Symlink,
            3 => tar::EntryType::Link,
            4 => tar::EntryType::Fifo,
            5 => tar::EntryType::Char,
            6 => tar::EntryType::GNUSparse,
            _ if archives.len() < 4 => {
                archives.push(new());
                continue;
            }
            _ => continue,
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(u32::from(member[3]));
        header.set_size(0);
        // Bytes, not paths: the crate would refuse the names that matter.
        let gnu = header.as_gnu_mut().expect("it was made as one");
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        let target = name(member[3]);
        gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        let archive = archives.last_mut().expect("there is the first");
        archive.append(&header, &[][..]).expect("memory is writable");
    }
    let finished = archives
        .into_iter()
        .map(|archive| archive.into_inner().expect("memory is writable"));
    finished.collect()
}

/// A tree that leads nowhere else, and counts its names.
fn assert_sound(tree: &Tree) {
    let mut names = std::collections::BTreeMap::new();
    let mut folders = vec![Tree::ROOT];
    while let Some(folder) = folders.pop() {
        for (name, id) in tree.names(folder) {
            assert!(!matches!(name, b"" | b"." | b".."), "{:?}", String::from_utf8_lossy(name));
            assert!(!name.contains(&b'/') && !name.contains(&0), "{:?}", String::from_utf8_lossy(name));
            let seen = names.entry(id).or_insert(0);
            *seen += 1;
            if matches!(tree.inode(id).node, Node::Folder(_)) {
                assert_eq!(*seen, 1, "a folder by two names");
                folders.push(id);
            }
        }
    }
    for (id, count) in names {
        assert_eq!(tree.inode(id).links, count, "links of {id:?}");
    }
}
