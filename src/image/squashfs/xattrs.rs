//! Extended attributes: sets that many inodes share, by number.

use std::collections::HashMap;
use std::io;

use super::SquashfsOptions;
use super::metadata::{Stream, table};
use crate::image::tree::Xattr;
use crate::squashfs::format::{NO_XATTR, xattr_type::PREFIXES};

/// All sets of an image.
pub(super) struct Xattrs {
    values: Stream<Vec<u8>>,
    /// Of each set: its place, how many attributes, and how long a list of their names is.
    ids: Vec<u8>,
    known: HashMap<Box<[Xattr]>, u32>,
}

impl Xattrs {
    pub(super) fn new(options: SquashfsOptions) -> Xattrs {
        Xattrs {
            values: Stream::new(options, Vec::new()),
            ids: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// The number of an inode's set, and whether something of it could not be kept.
    pub(super) fn add(&mut self, xattrs: &[Xattr]) -> io::Result<(u32, bool)> {
        let kept: Box<[Xattr]> = xattrs.iter().filter(|xattr| prefix(&xattr.name).is_some()).cloned().collect();
        let lost = kept.len() < xattrs.len();
        if kept.is_empty() {
            return Ok((NO_XATTR, lost));
        }
        if let Some(&id) = self.known.get(&kept) {
            return Ok((id, lost));
        }
        let id = u32::try_from(self.known.len()).map_err(|_| io::Error::other("too many sets of attributes"))?;
        let place = self.values.place()?;
        let mut names = 0;
        for xattr in &kept {
            let (name, number) = prefix(&xattr.name).expect("filtered above");
            let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("limited when it was read");
            self.values.push(&number.to_le_bytes())?;
            self.values.push(&length(name).to_le_bytes()[..2])?;
            self.values.push(name)?;
            self.values.push(&length(&xattr.value).to_le_bytes())?;
            self.values.push(&xattr.value)?;
            names += length(&xattr.name) + 1;
        }
        self.ids.extend(place.reference().to_le_bytes());
        self.ids.extend(u32::try_from(kept.len()).expect("fewer than bytes").to_le_bytes());
        self.ids.extend(names.to_le_bytes());
        self.known.insert(kept, id);
        Ok((id, lost))
    }

    /// The tables as they stand at `at`, and where the superblock points to; `None` if no inode has attributes.
    pub(super) fn finish(self, options: SquashfsOptions, at: u64) -> io::Result<Option<(Vec<u8>, u64)>> {
        if self.known.is_empty() {
            return Ok(None);
        }
        let count = u32::try_from(self.known.len()).expect("checked when added");
        let (mut bytes, length, _) = self.values.finish()?;
        let mut ids = Vec::new();
        let list = table(options, [&self.ids].into_iter(), &mut ids, at + length)?;
        let blocks = usize::try_from(list - at - length).expect("it is in memory");
        bytes.extend(&ids[..blocks]);
        let header = at + bytes.len() as u64;
        bytes.extend(at.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(&ids[blocks..]);
        Ok(Some((bytes, header)))
    }
}

fn prefix(name: &[u8]) -> Option<(&[u8], u16)> {
    (0..).zip(PREFIXES).find_map(|(number, prefix)| {
        let rest = name.strip_prefix(prefix.as_bytes())?;
        (!rest.is_empty()).then_some((rest, number))
    })
}
