//! Layers' changes → one tree (OCI image specification, `layer.md`, "Applying Changesets").
//!
//! Each layer is applied in two steps. First its whiteouts and opaque markers, wherever in the layer they stand: they hide what
//! lower layers have, and nothing of their own layer. Then its entries in order, the later of two with one name winning.
//!
//! Symbolic links are followed for the *folder* of an entry only, inside the tree and never above its root, as every tool does
//! that applies layers to a real folder. An entry itself replaces what has its name.

use std::collections::{HashMap, HashSet};

use super::changes::Changes;
use super::edit::When;
use super::error::{EntryFault, ImageError, OWN, shown};
use super::layer::{AUFS, Change, Content, NAME_MAX};
use super::limits::Budget;
use super::names::Names;
use super::tree::{Body, Inode, InodeId, Meta, Node, Tree};

/// Folders within folders; deeper than any real image, and shallow enough for every walk of the tree.
const MAX_DEPTH: usize = 1024;
/// About how many bytes of memory a folder takes that is made on the way.
const FOLDER_WEIGHT: u64 = 300;
/// Links on the way to one entry, as in the kernel.
const MAX_LINKS: usize = 40;

/// Merges layers, lowest first, each with its digest for messages.
/// Folders that no layer describes are counted in `budget` like entries: a short layer could ask for very many.
pub(super) fn merge(layers: Vec<(String, Changes)>, budget: &Budget) -> Result<Tree, ImageError> {
    let mut merger = Merger {
        inodes: vec![Inode {
            meta: Meta::unstated(),
            node: Node::Folder(Names::default()),
            links: 0,
        }],
        aufs: HashMap::new(),
        budget,
    };
    for (layer, (digest, changes)) in layers.into_iter().enumerate() {
        let layer = u32::try_from(layer).expect("a manifest is too small for so many layers");
        merger.apply(layer, &changes).map_err(|(entry, reason)| ImageError::Entry {
            layer: digest,
            entry: shown(&entry),
            reason,
        })?;
    }
    let mut tree = Tree { inodes: merger.inodes };
    count_links(&mut tree);
    Ok(tree)
}

/// Adds to a tree that is merged already. Nothing of it is hidden: a folder keeps its content and what it is like.
pub(super) fn put(tree: &mut Tree, layer: u32, changes: Vec<(Change, When)>, budget: &Budget) -> Result<(), ImageError> {
    let mut merger = Merger {
        inodes: std::mem::take(&mut tree.inodes),
        aufs: HashMap::new(),
        budget,
    };
    // The tree gets its inodes back whatever happens.
    let result = changes.into_iter().try_for_each(|(change, when)| merger.put(layer, change, when));
    tree.inodes = merger.inodes;
    count_links(tree);
    result.map_err(|(entry, reason)| ImageError::Entry {
        layer: OWN.to_owned(),
        entry: shown(&entry),
        reason,
    })
}

struct Merger<'a> {
    inodes: Vec<Inode>,
    /// Targets of hard links that AUFS kept beside the image, by path: they have no place in the tree.
    aufs: HashMap<Box<[u8]>, InodeId>,
    budget: &'a Budget,
}

type Fault = (Box<[u8]>, EntryFault);

impl Merger<'_> {
    fn apply(&mut self, layer: u32, changes: &Changes) -> Result<(), Fault> {
        self.aufs.clear();
        // A hard link may mean a name that its own layer hides or replaces: what lower layers have there is known only now.
        let mut lower = Vec::new();
        let mut markers = Vec::new();
        for change in changes.iter() {
            match change {
                Change::Whiteout(_) | Change::Opaque(_) => markers.push(change),
                Change::Add {
                    content: Content::HardLink(target),
                    ..
                } => lower.push(self.find(&target).ok().flatten()),
                Change::Add { .. } => {}
            }
        }
        self.hide(&markers, changes)?;
        let mut lower = lower.into_iter();
        for change in changes.iter() {
            if let Change::Add { path, meta, content } = change {
                let lower = match content {
                    Content::HardLink(_) => lower.next().flatten(),
                    _ => None,
                };
                self.add(layer, &path, meta, content, lower).map_err(|fault| (path, fault))?;
            }
        }
        Ok(())
    }

    fn put(&mut self, layer: u32, change: Change, when: When) -> Result<(), Fault> {
        let Change::Add { path, meta, content } = change else {
            return Ok(());
        };
        let found = self.find(&path).map_err(|fault| (path.clone(), fault))?;
        let kept = match (&content, found) {
            (_, None) => false,
            (_, Some(_)) if when == When::Missing => true,
            (Content::Folder, Some(id)) => matches!(self.inode(id).node, Node::Folder(_)),
            _ => false,
        };
        if kept {
            return Ok(());
        }
        self.add(layer, &path, meta, content, None).map_err(|fault| (path, fault))
    }

    fn hide(&mut self, markers: &[Change], changes: &Changes) -> Result<(), Fault> {
        if markers.is_empty() {
            return Ok(());
        }
        let own = on_the_way(markers, changes);
        // First look up all, then hide: the markers do not see each other's work, so their order cannot matter.
        let mut doomed: Vec<(InodeId, Option<&[u8]>)> = Vec::new();
        for marker in markers {
            match marker {
                Change::Whiteout(path) => {
                    let (parent, name) = split(path);
                    if let Some(folder) = self.lower_folder(parent, &own).map_err(|fault| (path.clone(), fault))? {
                        doomed.push((folder, Some(name)));
                    }
                }
                Change::Opaque(path) => {
                    if let Some(folder) = self.lower_folder(path, &own).map_err(|fault| (path.clone(), fault))? {
                        doomed.push((folder, None));
                    }
                }
                Change::Add { .. } => {}
            }
        }
        for (folder, name) in doomed {
            match name {
                Some(name) => self.names_mut(folder).remove(name),
                None => *self.names_mut(folder) = Names::default(),
            }
        }
        Ok(())
    }

    /// The folder that a marker means in the lower layers. A link on the way there is followed, unless the marker's own layer
    /// says what that path is: then whatever the link led to is not what the marker means.
    fn lower_folder(&self, path: &[u8], own: &HashSet<Box<[u8]>>) -> Result<Option<InodeId>, EntryFault> {
        let mut prefix = 0;
        let mut folder = Tree::ROOT;
        for part in parts(path) {
            prefix += part.len() + usize::from(prefix > 0);
            folder = match self.child(folder, part) {
                None => return Ok(None),
                Some(id) => match &self.inode(id).node {
                    Node::Folder(_) => id,
                    Node::Symlink(_) if !own.contains(&path[..prefix]) => match self.follow(&path[..prefix])? {
                        Some(id) => id,
                        None => return Ok(None),
                    },
                    _ => return Ok(None),
                },
            };
        }
        Ok(Some(folder))
    }

    /// The folder at `path`, through links; `None` where there is none.
    fn follow(&self, path: &[u8]) -> Result<Option<InodeId>, EntryFault> {
        let mut walk = Walk::new(path);
        while let Some(part) = walk.next() {
            match self.child(walk.here(), &part) {
                Some(id) => match &self.inode(id).node {
                    Node::Folder(_) => walk.enter(id)?,
                    Node::Symlink(target) => walk.follow(target)?,
                    _ => return Ok(None),
                },
                None => return Ok(None),
            }
        }
        Ok(Some(walk.here()))
    }

    /// What `path` names: links to its folder are followed, it itself is not.
    fn find(&self, path: &[u8]) -> Result<Option<InodeId>, EntryFault> {
        let (parent, name) = split(path);
        Ok(self.follow(parent)?.and_then(|folder| self.child(folder, name)))
    }

    /// The folder at `path`, through links; made where it is missing, in the place of whatever else is there.
    fn make_folder(&mut self, path: &[u8]) -> Result<InodeId, EntryFault> {
        let mut walk = Walk::new(path);
        while let Some(part) = walk.next() {
            let here = walk.here();
            match self.child(here, &part).map(|id| (id, &self.inode(id).node)) {
                Some((id, Node::Folder(_))) => walk.enter(id)?,
                Some((_, Node::Symlink(target))) => walk.follow(target)?,
                _ if part.len() > NAME_MAX => return Err(EntryFault::LongName),
                _ => {
                    self.budget.entry(FOLDER_WEIGHT + part.len() as u64)?;
                    let id = self.push(Meta::unstated(), Node::Folder(Names::default()));
                    walk.enter(id)?;
                    self.names_mut(here).insert(&part, id);
                }
            }
        }
        Ok(walk.here())
    }

    fn add(&mut self, layer: u32, path: &[u8], meta: Meta, content: Content, lower: Option<InodeId>) -> Result<(), EntryFault> {
        let node = match content {
            Content::Folder => return self.add_folder(path, meta),
            Content::HardLink(target) => return self.add_hard_link(path, &target, lower),
            Content::File { size, data } => Node::File(Body { layer, size, data }),
            Content::Symlink(target) => Node::Symlink(target),
            Content::CharDevice { major, minor } => Node::CharDevice { major, minor },
            Content::BlockDevice { major, minor } => Node::BlockDevice { major, minor },
            Content::Fifo => Node::Fifo,
        };
        if path.starts_with(AUFS) {
            let id = self.push(meta, node);
            self.aufs.insert(path.into(), id);
            return Ok(());
        }
        let (folder, name) = self.place(path)?;
        let id = self.push(meta, node);
        self.names_mut(folder).insert(name, id);
        Ok(())
    }

    /// A folder over a folder only changes what it is like; its content stays.
    fn add_folder(&mut self, path: &[u8], meta: Meta) -> Result<(), EntryFault> {
        if path.is_empty() {
            self.inodes[0].meta = meta;
            return Ok(());
        }
        let (folder, name) = self.place(path)?;
        match self.child(folder, name) {
            Some(id) if matches!(self.inode(id).node, Node::Folder(_)) => self.inodes[id.0 as usize].meta = meta,
            _ => {
                let id = self.push(meta, Node::Folder(Names::default()));
                self.names_mut(folder).insert(name, id);
            }
        }
        Ok(())
    }

    /// `lower` is what the target was before this layer.
    fn add_hard_link(&mut self, path: &[u8], target: &[u8], lower: Option<InodeId>) -> Result<(), EntryFault> {
        let id = match self.aufs.get(target) {
            Some(&id) => id,
            None => self.find(target)?.or(lower).ok_or_else(|| EntryFault::NoTarget(shown(target)))?,
        };
        if matches!(self.inode(id).node, Node::Folder(_)) {
            return Err(EntryFault::FolderTarget(shown(target)));
        }
        let (folder, name) = self.place(path)?;
        self.names_mut(folder).insert(name, id);
        Ok(())
    }

    /// The folder that an entry goes to, made if need be, and its name there.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(InodeId, &'p [u8]), EntryFault> {
        let (parent, name) = split(path);
        Ok((self.make_folder(parent)?, name))
    }

    fn push(&mut self, meta: Meta, node: Node) -> InodeId {
        let id = InodeId(u32::try_from(self.inodes.len()).expect("the number of entries is limited"));
        self.inodes.push(Inode { meta, node, links: 0 });
        id
    }

    fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    fn child(&self, folder: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inode(folder).node {
            Node::Folder(names) => names.get(name),
            _ => None,
        }
    }

    fn names_mut(&mut self, folder: InodeId) -> &mut Names {
        match &mut self.inodes[folder.0 as usize].node {
            Node::Folder(names) => names,
            _ => unreachable!("a walk ends in a folder"),
        }
    }
}

/// The paths of a layer that its markers lead through.
fn on_the_way(markers: &[Change], changes: &Changes) -> HashSet<Box<[u8]>> {
    let mut marked: Vec<&[u8]> = markers
        .iter()
        .map(|marker| match marker {
            Change::Whiteout(path) | Change::Opaque(path) | Change::Add { path, .. } => &**path,
        })
        .collect();
    marked.sort_unstable();
    let leads_there = |path: &[u8]| {
        let inner = [path, b"/"].concat();
        let next = marked.partition_point(|marked| *marked < &*inner);
        marked.get(next).is_some_and(|marked| marked.starts_with(&inner)) || marked.binary_search(&path).is_ok()
    };
    let paths = changes.iter().filter_map(|change| match change {
        Change::Add { path, .. } if leads_there(&path) => Some(path),
        _ => None,
    });
    paths.collect()
}

/// A path being looked up: where it has come to, and the parts still to go.
struct Walk {
    /// From the root to here, so that a link's `..` finds its way back and stops at the root.
    trail: Vec<InodeId>,
    /// In reverse.
    todo: Vec<Box<[u8]>>,
    links: usize,
}

impl Walk {
    fn new(path: &[u8]) -> Walk {
        Walk {
            trail: vec![Tree::ROOT],
            todo: parts(path).rev().map(Box::from).collect(),
            links: 0,
        }
    }

    fn here(&self) -> InodeId {
        *self.trail.last().expect("the root is never popped")
    }

    fn next(&mut self) -> Option<Box<[u8]>> {
        loop {
            let part = self.todo.pop()?;
            if *part != *b".." {
                return Some(part);
            }
            if self.trail.len() > 1 {
                self.trail.pop();
            }
        }
    }

    fn enter(&mut self, folder: InodeId) -> Result<(), EntryFault> {
        if self.trail.len() > MAX_DEPTH {
            return Err(EntryFault::TooDeep(MAX_DEPTH));
        }
        self.trail.push(folder);
        Ok(())
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), EntryFault> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(EntryFault::LinkLoop(MAX_LINKS));
        }
        if target.starts_with(b"/") {
            self.trail.truncate(1);
        }
        self.todo.extend(parts(target).rev().map(Box::from));
        Ok(())
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn count_links(tree: &mut Tree) {
    tree.inodes.iter_mut().for_each(|inode| inode.links = 0);
    tree.inodes[0].links = 1;
    let mut folders = vec![Tree::ROOT];
    while let Some(folder) = folders.pop() {
        let children: Vec<InodeId> = tree.names(folder).map(|(_, id)| id).collect();
        for id in children {
            let inode = &mut tree.inodes[id.0 as usize];
            inode.links += 1;
            if matches!(inode.node, Node::Folder(_)) {
                folders.push(id);
            }
        }
    }
}
