//! Extended attributes.

use super::format::{NO_TABLE, XATTR_ENTRY, xattr_type};
use super::inode::Inode;
use super::metadata::Cursor;
use super::{Squashfs, SquashfsError};

/// An extended attribute, with its whole name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// Linux's own limit of a value.
const VALUE_MAX: u32 = 64 << 10;
/// Of all names and values of a file.
const ALL_MAX: usize = 1 << 20;

impl Squashfs {
    /// Whether anything in the image can have extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.tables.xattrs != NO_TABLE
    }

    /// The extended attributes of `inode`.
    ///
    /// # Errors
    /// A damaged table.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, SquashfsError> {
        let Some(index) = inode.xattr.filter(|_| self.has_xattrs()) else {
            return Ok(Vec::new());
        };
        let table = self.tables.xattrs;
        let start = self.source.u64(table)?;
        let mut header = [0; 4];
        self.source.read(self.table(table, 8)?, &mut header)?;
        if index >= u32::from_le_bytes(header) {
            return Err(SquashfsError::damaged("extended attributes that are not in their table,", table));
        }
        let mut record = self.record(self.table(table, 16)?, u64::from(index), XATTR_ENTRY)?;
        let (place, count) = (record.u64()?, record.u32()?);
        let mut cursor = self.xattr_cursor(start, place)?;
        let (mut all, mut total) = (Vec::new(), 0);
        for _ in 0..count {
            let (kind, length) = (cursor.u16()?, cursor.u16()?);
            let Some(prefix) = xattr_type::PREFIXES.get(usize::from(kind & xattr_type::PREFIX_MASK)) else {
                return Err(SquashfsError::damaged("an extended attribute of no known type", table));
            };
            let name = [prefix.as_bytes(), &cursor.bytes(usize::from(length))?].concat();
            let value = if kind & xattr_type::ELSEWHERE != 0 {
                let _length = cursor.u32()?;
                let place = cursor.u64()?;
                value(&mut self.xattr_cursor(start, place)?, table)?
            } else {
                value(&mut cursor, table)?
            };
            total += name.len() + value.len();
            if total > ALL_MAX {
                return Err(SquashfsError::TooBig("a file with too many extended attributes"));
            }
            all.push(Xattr { name, value });
        }
        Ok(all)
    }

    fn xattr_cursor(&self, start: u64, place: u64) -> Result<Cursor<'_>, SquashfsError> {
        self.cursor(self.table(start, place >> 16)?, (place & 0xffff) as usize)
    }
}

fn value(cursor: &mut Cursor<'_>, table: u64) -> Result<Vec<u8>, SquashfsError> {
    let length = cursor.u32()?;
    if length > VALUE_MAX {
        return Err(SquashfsError::damaged("an extended attribute that is too long", table));
    }
    cursor.bytes(length as usize)
}
