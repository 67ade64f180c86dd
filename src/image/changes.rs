//! A layer's changes, as bytes until the layers are merged: thirty for a usual file, where the values take two hundred, and there
//! are as many as files in all layers. In an archive that goes from folder to folder most paths begin like the one before.
//!
//! ```text
//! kind │ bytes shared with the path before │ rest of the path │ mode, owners, time, attributes │ content
//! ```
//!
//! All numbers are LEB128; what has no length of its own has one before it. Nothing but this process reads them.

use super::layer::{Change, Content};
use super::tree::{Data, Meta, Segment, Time, Xattr};

/// Changes in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Changes {
    bytes: Vec<u8>,
    /// The last one's path.
    path: Vec<u8>,
}

mod kind {
    pub(super) const WHITEOUT: u64 = 0;
    pub(super) const OPAQUE: u64 = 1;
    pub(super) const FOLDER: u64 = 2;
    pub(super) const FILE: u64 = 3;
    pub(super) const SPARSE_FILE: u64 = 4;
    pub(super) const HARD_LINK: u64 = 5;
    pub(super) const SYMLINK: u64 = 6;
    pub(super) const CHAR_DEVICE: u64 = 7;
    pub(super) const BLOCK_DEVICE: u64 = 8;
    pub(super) const FIFO: u64 = 9;
}

impl Changes {
    pub(super) fn push(&mut self, change: &Change) {
        match change {
            Change::Whiteout(path) => self.head(kind::WHITEOUT, path),
            Change::Opaque(path) => self.head(kind::OPAQUE, path),
            Change::Add { path, meta, content } => {
                self.head(kind_of(content), path);
                self.meta(meta);
                self.content(content);
            }
        }
    }

    pub(super) fn iter(&self) -> Iter<'_> {
        Iter {
            rest: &self.bytes,
            path: Vec::new(),
        }
    }

    fn head(&mut self, kind: u64, path: &[u8]) {
        let shared = self.path.iter().zip(path).take_while(|(a, b)| a == b).count();
        self.number(kind);
        self.number(shared as u64);
        self.text(&path[shared..]);
        self.path.truncate(shared);
        self.path.extend_from_slice(&path[shared..]);
    }

    fn meta(&mut self, meta: &Meta) {
        self.numbers(&[meta.mode.into(), meta.uid.into(), meta.gid.into()]);
        self.numbers(&[
            meta.mtime.seconds.cast_unsigned(),
            meta.mtime.nanos.into(),
            meta.xattrs.len() as u64,
        ]);
        for Xattr { name, value } in &*meta.xattrs {
            self.text(name);
            self.text(value);
        }
    }

    fn content(&mut self, content: &Content) {
        match content {
            Content::Folder | Content::Fifo => {}
            Content::File { size, data } => {
                self.number(*size);
                match data {
                    Data::Plain(offset) => self.number(*offset),
                    Data::Sparse(segments) => {
                        self.number(segments.len() as u64);
                        for Segment { at, length, offset } in &**segments {
                            self.numbers(&[*at, *length, *offset]);
                        }
                    }
                }
            }
            Content::HardLink(target) | Content::Symlink(target) => self.text(target),
            Content::CharDevice { major, minor } | Content::BlockDevice { major, minor } => {
                self.numbers(&[(*major).into(), (*minor).into()]);
            }
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text);
    }

    fn numbers(&mut self, numbers: &[u64]) {
        numbers.iter().for_each(|number| self.number(*number));
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

fn kind_of(content: &Content) -> u64 {
    match content {
        Content::Folder => kind::FOLDER,
        Content::File { data: Data::Plain(_), .. } => kind::FILE,
        Content::File { data: Data::Sparse(_), .. } => kind::SPARSE_FILE,
        Content::HardLink(_) => kind::HARD_LINK,
        Content::Symlink(_) => kind::SYMLINK,
        Content::CharDevice { .. } => kind::CHAR_DEVICE,
        Content::BlockDevice { .. } => kind::BLOCK_DEVICE,
        Content::Fifo => kind::FIFO,
    }
}

/// Changes as values again.
pub(super) struct Iter<'a> {
    rest: &'a [u8],
    path: Vec<u8>,
}

impl Iterator for Iter<'_> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        if self.rest.is_empty() {
            return None;
        }
        let kind = self.number();
        let shared = self.length();
        self.path.truncate(shared);
        let rest = self.text();
        self.path.extend_from_slice(rest);
        let path: Box<[u8]> = self.path.as_slice().into();
        Some(match kind {
            kind::WHITEOUT => Change::Whiteout(path),
            kind::OPAQUE => Change::Opaque(path),
            _ => Change::Add {
                path,
                meta: self.meta(),
                content: self.content(kind),
            },
        })
    }
}

const WRITTEN: &str = "it was written here";

impl<'a> Iter<'a> {
    fn meta(&mut self) -> Meta {
        Meta {
            mode: u16::try_from(self.number()).expect(WRITTEN),
            uid: self.short(),
            gid: self.short(),
            mtime: Time {
                seconds: self.number().cast_signed(),
                nanos: self.short(),
            },
            xattrs: (0..self.number())
                .map(|_| Xattr {
                    name: self.text().into(),
                    value: self.text().into(),
                })
                .collect(),
        }
    }

    fn content(&mut self, kind: u64) -> Content {
        match kind {
            kind::FOLDER => Content::Folder,
            kind::FILE => Content::File {
                size: self.number(),
                data: Data::Plain(self.number()),
            },
            kind::SPARSE_FILE => Content::File {
                size: self.number(),
                data: Data::Sparse(
                    (0..self.number())
                        .map(|_| Segment {
                            at: self.number(),
                            length: self.number(),
                            offset: self.number(),
                        })
                        .collect(),
                ),
            },
            kind::HARD_LINK => Content::HardLink(self.text().into()),
            kind::SYMLINK => Content::Symlink(self.text().into()),
            kind::CHAR_DEVICE | kind::BLOCK_DEVICE => {
                let (major, minor) = (self.short(), self.short());
                match kind {
                    kind::CHAR_DEVICE => Content::CharDevice { major, minor },
                    _ => Content::BlockDevice { major, minor },
                }
            }
            kind::FIFO => Content::Fifo,
            _ => unreachable!("no other kind is written"),
        }
    }

    fn text(&mut self) -> &'a [u8] {
        let length = self.length();
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        text
    }

    fn length(&mut self) -> usize {
        usize::try_from(self.number()).expect(WRITTEN)
    }

    fn short(&mut self) -> u32 {
        u32::try_from(self.number()).expect(WRITTEN)
    }

    fn number(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (&byte, rest) = self.rest.split_first().expect(WRITTEN);
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_back_as_they_were() {
        let path = |text: &str| text.as_bytes().into();
        let add = |text: &str, content| Change::Add {
            path: path(text),
            meta: Meta {
                mode: 0o7777,
                uid: u32::MAX - 1,
                gid: 127,
                mtime: Time {
                    seconds: -128,
                    nanos: 999_999_999,
                },
                xattrs: [("user.a", ""), ("user.b", "value")]
                    .map(|(name, value)| Xattr {
                        name: path(name),
                        value: path(value),
                    })
                    .into_iter()
                    .collect(),
            },
            content,
        };
        let segment = |at, length, offset| Segment { at, length, offset };
        let changes = [
            add("", Content::Folder),
            Change::Opaque(path("")),
            Change::Whiteout(path("usr/share/man")),
            Change::Opaque(path("usr/share")),
            add(
                "usr/share/man",
                Content::File {
                    size: u64::MAX,
                    data: Data::Plain(1 << 40),
                },
            ),
            add(
                "usr/share/mango",
                Content::File {
                    size: 128,
                    data: Data::Sparse([segment(0, 1, 512), segment(100, 28, 513)].into_iter().collect()),
                },
            ),
            add(
                "usr/hole",
                Content::File {
                    size: 1,
                    data: Data::Sparse(std::iter::empty().collect()),
                },
            ),
            add("usr/hard", Content::HardLink(path("usr/share/mango"))),
            add("usr/soft", Content::Symlink(path("../mango"))),
            add("dev/null", Content::CharDevice { major: 1, minor: 300 }),
            add("dev/vda", Content::BlockDevice { major: 254, minor: 0 }),
            add("dev/fifo", Content::Fifo),
        ];
        let mut written = Changes::default();
        changes.iter().for_each(|change| written.push(change));
        let read: Vec<Change> = written.iter().collect();
        assert_eq!(format!("{read:?}"), format!("{changes:?}"));
    }
}
