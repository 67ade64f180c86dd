//! A root folder as it lies on the disk, entry by entry, and what a model says it should be.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use walkdir::WalkDir;

use super::model::{Kind, Model};

/// One name on the disk. Content is kept whole: the trees of tests are small.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: &'static str,
    /// Permissions; of links none, they have none.
    pub mode: u32,
    pub content: Vec<u8>,
    pub mtime: i64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same file.
    pub same_as: Vec<u8>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content = &self.content[..self.content.len().min(40)];
        write!(
            f,
            "{} {:o} {} bytes {:?} @{} {:?} = {:?}",
            self.kind,
            self.mode,
            self.content.len(),
            String::from_utf8_lossy(content),
            self.mtime,
            self.xattrs,
            String::from_utf8_lossy(&self.same_as)
        )
    }
}

pub type SeenTree = BTreeMap<Vec<u8>, Seen>;

/// Reads the folder without following a link. Needs to own it: modes that forbid reading are lifted and put back.
pub fn on_disk(root: &Path) -> SeenTree {
    let mut seen = SeenTree::new();
    let mut first_names = BTreeMap::new();
    let mut folder_times = Vec::new();
    collect(root, root, &mut seen, &mut folder_times);
    for (path, entry) in &mut seen {
        let on_disk = fs::symlink_metadata(root.join(std::ffi::OsStr::from_bytes(path))).expect("it was just read");
        if entry.kind == "link" {
            entry.same_as.clone_from(path);
            continue;
        }
        entry.same_as = first_names.entry(on_disk.ino()).or_insert_with(|| path.clone()).clone();
    }
    for (path, mode) in folder_times.into_iter().rev() {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is the test's own");
    }
    seen
}

fn collect(root: &Path, path: &Path, seen: &mut SeenTree, opened: &mut Vec<(std::path::PathBuf, u32)>) {
    let meta = fs::symlink_metadata(path).expect("it exists");
    let mode = meta.permissions().mode() & 0o7777;
    let kind = meta.file_type();
    let mut entry = Seen {
        kind: "?",
        mode,
        content: Vec::new(),
        mtime: meta.mtime(),
        xattrs: BTreeMap::new(),
        same_as: Vec::new(),
    };
    let lift = |needed: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode | needed)).expect("it is the test's own");
    if kind.is_dir() {
        entry.kind = "folder";
        lift(0o700);
        opened.push((path.to_owned(), mode));
        entry.xattrs = xattrs(path);
        let mut names: Vec<_> = fs::read_dir(path)
            .expect("it is open")
            .map(|e| e.expect("readable").path())
            .collect();
        names.sort();
        for name in names {
            collect(root, &name, seen, opened);
        }
    } else if kind.is_symlink() {
        entry.kind = "link";
        entry.mode = 0;
        entry.content = fs::read_link(path).expect("it is a link").as_os_str().as_bytes().to_vec();
    } else if kind.is_file() {
        entry.kind = "file";
        lift(0o600);
        entry.content = fs::read(path).expect("it is open");
        entry.xattrs = xattrs(path);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is the test's own");
    } else if kind.is_fifo() {
        entry.kind = "fifo";
    }
    let name = path.strip_prefix(root).expect("it is below").as_os_str().as_bytes().to_vec();
    seen.insert(name, entry);
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => panic!("cannot list attributes of {}: {error}", path.display()),
    };
    let names = names[..length].split(|&b| b == 0).filter(|name| name.starts_with(b"user."));
    names
        .map(|name| {
            let mut value = vec![0_u8; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("it was listed");
            (name.to_vec(), value[..length].to_vec())
        })
        .filter(|(name, _)| name != b"user.rootlesscontainers")
        .collect()
}

/// What a folder of this model looks like when an ordinary user writes it.
pub fn expected(model: &Model) -> SeenTree {
    let mut first_names = BTreeMap::new();
    let mut tree = SeenTree::new();
    for (path, id) in &model.names {
        let node = &model.nodes[*id];
        let (kind, mask, content) = match &node.kind {
            Kind::Folder => ("folder", 0o1777, Vec::new()),
            Kind::File(content) => ("file", 0o777, content.clone()),
            Kind::Symlink(target) => ("link", 0, target.clone()),
            Kind::Char(..) | Kind::Block(..) => ("file", 0o777, Vec::new()),
            Kind::Fifo => ("fifo", 0o777, Vec::new()),
        };
        let mut xattrs = node.xattrs.clone();
        xattrs.retain(|name, _| name.starts_with(b"user.") && matches!(kind, "file" | "folder"));
        let entry = Seen {
            kind,
            mode: node.mode & mask,
            content,
            mtime: node.mtime,
            xattrs,
            same_as: match kind {
                // Two symbolic links are as good as one with two names.
                "link" => path.clone(),
                _ => first_names.entry(*id).or_insert_with(|| path.clone()).clone(),
            },
        };
        tree.insert(path.clone(), entry);
    }
    tree
}

/// Fails with the first differences, path by path.
#[track_caller]
pub fn assert_same(what: &str, ours: &SeenTree, theirs: &SeenTree) {
    let mut differences = Vec::new();
    for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
        let (left, right) = (ours.get(path), theirs.get(path));
        if left != right {
            differences.push(format!("  /{}\n    {left:?}\n    {right:?}", String::from_utf8_lossy(path)));
        }
    }
    assert!(
        differences.is_empty(),
        "{what}: {} differences\n{}",
        differences.len(),
        differences.iter().take(12).cloned().collect::<Vec<_>>().join("\n")
    );
}

/// Every path in a folder, for tests that nothing is there.
pub fn names_below(root: &Path) -> Vec<String> {
    let entries = WalkDir::new(root).min_depth(1).sort_by_file_name();
    entries
        .into_iter()
        .map(|entry| entry.expect("the test owns it").path().display().to_string())
        .collect()
}
