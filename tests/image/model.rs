//! What layers mean, slowly and plainly: a map from whole paths, copied for each layer.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::layers::Member;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Names = BTreeMap<Vec<u8>, usize>;

/// Paths without a leading slash; the root's is empty. Two names of one node are hard links.
#[derive(Clone, Debug)]
pub struct Model {
    pub names: Names,
    pub nodes: Vec<Node>,
}

/// A stack that means nothing: a hard link to nothing, links in circles.
#[derive(Debug, PartialEq, Eq)]
pub struct Meaningless;

impl Model {
    pub fn of(layers: &[Vec<Member>]) -> Result<Model, Meaningless> {
        let mut model = Model {
            names: Names::new(),
            nodes: vec![made_on_the_way()],
        };
        model.names.insert(Vec::new(), 0);
        for layer in layers {
            model.apply(layer)?;
        }
        Ok(model)
    }

    fn apply(&mut self, layer: &[Member]) -> Result<(), Meaningless> {
        let lower = self.names.clone();
        let own: BTreeSet<Vec<u8>> = layer.iter().filter(|m| marker(m).is_none()).map(|m| path_of(&m.name)).collect();
        for member in layer {
            let Some((parent, hidden)) = marker(member) else { continue };
            let Some(folder) = self.lower_folder(&lower, &parent, &own)? else {
                continue;
            };
            let doomed: Vec<Vec<u8>> = match hidden {
                Some(name) => {
                    let top = join(&folder, &name);
                    lower.keys().filter(|path| **path == top || below(path, &top)).cloned().collect()
                }
                None => lower.keys().filter(|path| below(path, &folder)).cloned().collect(),
            };
            for path in doomed {
                self.names.remove(&path);
            }
        }
        for member in layer.iter().filter(|m| marker(m).is_none()) {
            self.add(member, &lower)?;
        }
        Ok(())
    }

    fn lower_folder(&self, lower: &Names, path: &[u8], own: &BTreeSet<Vec<u8>>) -> Result<Option<Vec<u8>>, Meaningless> {
        let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|p| !p.is_empty()).collect();
        for end in 1..=parts.len() {
            let prefix = parts[..end].join(&b'/');
            let resolved = self.resolve(lower, &parts[..end - 1].join(&b'/'))?;
            let here = resolved.map(|folder| join(&folder, parts[end - 1]));
            match here.and_then(|path| lower.get(&path)).map(|id| &self.nodes[*id].kind) {
                Some(Kind::Folder) => {}
                Some(Kind::Symlink(_)) if !own.contains(&prefix) => {}
                _ => return Ok(None),
            }
        }
        self.resolve(lower, path)
    }

    /// The folder that `path` leads to through links, if all of the way is there.
    fn resolve(&self, names: &Names, path: &[u8]) -> Result<Option<Vec<u8>>, Meaningless> {
        let mut here: Vec<u8> = Vec::new();
        let mut todo: Vec<Vec<u8>> = split(path);
        let mut links = 0;
        while !todo.is_empty() {
            let part = todo.remove(0);
            if part == b".." {
                here = parent(&here).to_vec();
                continue;
            }
            let next = join(&here, &part);
            match names.get(&next).map(|id| &self.nodes[*id].kind) {
                Some(Kind::Folder) => here = next,
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > 40 {
                        return Err(Meaningless);
                    }
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    todo.splice(0..0, split(target));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// As [`Model::resolve`], but what is missing is made.
    fn make(&mut self, path: &[u8]) -> Result<Vec<u8>, Meaningless> {
        let mut here: Vec<u8> = Vec::new();
        let mut todo: Vec<Vec<u8>> = split(path);
        let mut links = 0;
        while !todo.is_empty() {
            let part = todo.remove(0);
            if part == b".." {
                here = parent(&here).to_vec();
                continue;
            }
            let next = join(&here, &part);
            match self.names.get(&next).map(|id| self.nodes[*id].kind.clone()) {
                Some(Kind::Folder) => {}
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > 40 {
                        return Err(Meaningless);
                    }
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    todo.splice(0..0, split(&target));
                    continue;
                }
                _ => self.put(next.clone(), made_on_the_way()),
            }
            here = next;
        }
        Ok(here)
    }

    fn add(&mut self, member: &Member, lower: &Names) -> Result<(), Meaningless> {
        let path = match &member.real {
            Some((name, _)) => path_of(name),
            None => path_of(&member.name),
        };
        let kind = match member.kind {
            b'1' => return self.add_hard_link(&path, &path_of(&member.link), lower),
            b'5' => Kind::Folder,
            0 if member.name.ends_with(b"/") => Kind::Folder,
            b'2' => Kind::Symlink(member.link.clone()),
            b'3' => Kind::Char(member.device.0, member.device.1),
            b'4' => Kind::Block(member.device.0, member.device.1),
            b'6' => Kind::Fifo,
            _ => Kind::File(content(member)),
        };
        let node = Node {
            kind,
            mode: member.mode & 0o7777,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            xattrs: xattrs(member),
        };
        if path.is_empty() {
            self.nodes[0] = node;
            return Ok(());
        }
        let folder = self.make(parent(&path))?;
        let place = join(&folder, name(&path));
        match self.names.get(&place) {
            Some(&id) if node.kind == Kind::Folder && self.nodes[id].kind == Kind::Folder => self.nodes[id] = node,
            _ => self.put(place, node),
        }
        Ok(())
    }

    fn add_hard_link(&mut self, path: &[u8], target: &[u8], lower: &Names) -> Result<(), Meaningless> {
        let find = |names: &Names| -> Result<Option<usize>, Meaningless> {
            let folder = self.resolve(names, parent(target))?;
            Ok(folder.and_then(|folder| names.get(&join(&folder, name(target))).copied()))
        };
        let seen = find(&self.names)?.or(find(lower).ok().flatten());
        let id = seen.filter(|&id| self.nodes[id].kind != Kind::Folder).ok_or(Meaningless)?;
        let folder = self.make(parent(path))?;
        let place = join(&folder, name(path));
        self.names.retain(|path, _| *path != place && !below(path, &place));
        self.names.insert(place, id);
        Ok(())
    }

    /// In the place of whatever is there, with all below it.
    fn put(&mut self, path: Vec<u8>, node: Node) {
        self.names.retain(|other, _| *other != path && !below(other, &path));
        self.names.insert(path, self.nodes.len());
        self.nodes.push(node);
    }
}

/// A folder that nothing describes.
fn made_on_the_way() -> Node {
    Node {
        kind: Kind::Folder,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        xattrs: BTreeMap::new(),
    }
}

/// For a whiteout its folder and the hidden name; for an opaque marker its folder alone.
fn marker(member: &Member) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let path = path_of(&member.name);
    let hidden = name(&path).strip_prefix(b".wh.")?;
    let hidden = (hidden != b".wh..opq").then(|| hidden.to_vec());
    Some((parent(&path).to_vec(), hidden))
}

/// The name that counts, after PAX: cleaned as `/`-joined parts.
fn path_of(name: &[u8]) -> Vec<u8> {
    split(name).join(&b'/')
}

fn content(member: &Member) -> Vec<u8> {
    match &member.real {
        Some((_, content)) => content.clone(),
        None => member.body.clone(),
    }
}

fn xattrs(member: &Member) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let records = member.pax.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(b"SCHILY.xattr.")?;
        let kept = name != b"security.selinux" && name != b"system.nfs4_acl";
        kept.then(|| (name.to_vec(), value.clone()))
    });
    records.collect()
}

fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.map(<[u8]>::to_vec).collect()
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(&[], |slash| &path[..slash])
}

fn name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(path, |slash| &path[slash + 1..])
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() {
        name.to_vec()
    } else {
        [folder, b"/", name].concat()
    }
}

fn below(path: &[u8], folder: &[u8]) -> bool {
    if folder.is_empty() {
        return !path.is_empty();
    }
    path.len() > folder.len() && path.starts_with(folder) && path[folder.len()] == b'/'
}
