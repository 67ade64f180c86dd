//! Entry after entry from a stream.

use std::io::{self, BufRead, ErrorKind};

use super::TarError;
use super::header::{BLOCK, Header};
use super::pax::{Pax, decimal};
use super::sparse::Map;
use crate::image::limits::Limits;
use crate::image::tree::{Data, Meta, Time};

/// An archive being read from its start.
pub struct Reader<R> {
    input: R,
    /// Bytes read so far.
    position: u64,
    /// Bytes of the current entry's body, with its padding, that are still to come.
    pending: u64,
    current: Vec<u8>,
    ended: bool,
    long_name: u64,
    pax_header: u64,
}

/// One member of the archive, names exactly as they are stored.
#[derive(Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub meta: Meta,
    pub content: Content,
}

/// What an entry is.
#[derive(Debug)]
pub enum Content {
    /// `data` points into the archive, counted from its first byte.
    File {
        size: u64,
        data: Data,
    },
    Folder,
    /// The target, to be looked up from the root.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// What the special entries before a header say about it.
#[derive(Default)]
struct Prelude {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R, limits: &Limits) -> Reader<R> {
        Reader {
            input,
            position: 0,
            pending: 0,
            current: Vec::new(),
            ended: false,
            long_name: limits.path_bytes,
            pax_header: limits.pax_bytes,
        }
    }

    /// The name of the entry read last, as far as it is known: for messages.
    pub fn current(&self) -> &[u8] {
        &self.current
    }

    /// What is behind the archive, the rest of the stream included.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; `None` at the end marker (two blocks of zeros) or where the stream ends between entries.
    ///
    /// # Errors
    /// The first thing that is wrong; the reader is of no use after that.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut prelude = Prelude::default();
        loop {
            self.skip_pending()?;
            let Some(block) = self.next_header()? else {
                return match prelude {
                    Prelude {
                        name: None,
                        link: None,
                        pax: None,
                    } => Ok(None),
                    _ => Err(TarError::Truncated),
                };
            };
            let header = Header(&block);
            header.verify()?;
            match header.typeflag() {
                b'x' => {
                    let bytes = self.special(&header, "the PAX header", self.pax_header)?;
                    prelude.pax = Some(Pax::parse(&bytes)?);
                }
                // Defaults for all that follow: nobody who applies layers heeds them (git archive keeps a commit's hash there).
                b'g' => self.expect_body(header.size()?)?,
                b'L' => prelude.name = Some(until_nul(self.special(&header, "the name", self.long_name)?)),
                b'K' => prelude.link = Some(until_nul(self.special(&header, "the link's target", self.long_name)?)),
                _ => return self.entry(&header, prelude).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, prelude: Prelude) -> Result<Entry, TarError> {
        let mut pax = prelude.pax.unwrap_or_default();
        let path = pax
            .sparse
            .name
            .take()
            .or(pax.path.take())
            .or(prelude.name)
            .unwrap_or_else(|| header.name());
        let link = pax.link.take().or(prelude.link).unwrap_or_else(|| header.link());
        self.current.clone_from(&path);
        for name in [&path, &link] {
            if name.contains(&0) {
                return Err(TarError::NulInName);
            }
            if name.len() as u64 > self.long_name {
                return Err(TarError::TooLong {
                    what: "a name",
                    size: name.len() as u64,
                    limit: self.long_name,
                });
            }
        }
        let size = match pax.size {
            Some(size) => size,
            None => header.size()?,
        };
        pax.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        let meta = Meta {
            mode: header.mode()?,
            uid: owner(pax.uid, header.uid(), "uid")?,
            gid: owner(pax.gid, header.gid(), "gid")?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time {
                    seconds: header.mtime()?,
                    nanos: 0,
                },
            },
            xattrs: std::mem::take(&mut pax.xattrs).into_iter().collect(),
        };
        // Only files have a body: a size on anything else is a leftover, as Go reads it.
        let content = match header.typeflag() {
            0 if path.ends_with(b"/") => Content::Folder,
            b'0' | 0 | b'7' => self.file(pax, size)?,
            b'S' => self.gnu_sparse_file(header, size)?,
            b'1' => Content::HardLink(link),
            b'2' => Content::Symlink(link),
            b'3' => {
                let (major, minor) = header.device()?;
                Content::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = header.device()?;
                Content::BlockDevice { major, minor }
            }
            b'5' => Content::Folder,
            b'6' => Content::Fifo,
            other => return Err(TarError::Type(other)),
        };
        Ok(Entry { path, meta, content })
    }

    fn file(&mut self, pax: Pax, size: u64) -> Result<Content, TarError> {
        self.expect_body(size)?;
        let sparse = pax.sparse;
        let in_body = sparse.major == Some(1) && sparse.minor == Some(0);
        if !in_body && !sparse.has_map {
            return Ok(Content::File {
                size,
                data: Data::Plain(self.position),
            });
        }
        let real_size = sparse.real_size.ok_or(TarError::Sparse("the file's real size is missing"))?;
        let mut map = Map::default();
        let stored = if in_body {
            size - self.map_in_body(&mut map, size)?
        } else {
            let pairs = sparse.map.chunks_exact(2);
            if !pairs.remainder().is_empty() {
                return Err(TarError::Sparse("an offset has no length"));
            }
            for pair in pairs {
                map.push(pair[0], pair[1])?;
            }
            size
        };
        let data = Data::Sparse(map.finish(real_size, stored, self.position)?);
        Ok(Content::File { size: real_size, data })
    }

    /// Format 1.0: the body begins with decimal lines (how many parts, then offset and length of each), padded to a block.
    /// Returns how many bytes of the body that takes.
    fn map_in_body(&mut self, map: &mut Map, size: u64) -> Result<u64, TarError> {
        let start = self.position;
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut number = || -> Result<u64, TarError> {
            let mut digits = Vec::new();
            loop {
                if at == BLOCK {
                    if self.position - start + BLOCK as u64 > size {
                        return Err(TarError::Sparse("it is longer than what is stored"));
                    }
                    self.read_block(&mut block)?;
                    self.pending -= BLOCK as u64;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                if byte == b'\n' {
                    return decimal(&digits).ok_or(TarError::Sparse("a line of it is no number"));
                }
                if digits.len() == 20 {
                    return Err(TarError::Sparse("a line of it is no number"));
                }
                digits.push(byte);
            }
        };
        for _ in 0..number()? {
            let (offset, length) = (number()?, number()?);
            map.push(offset, length)?;
        }
        Ok(self.position - start)
    }

    fn gnu_sparse_file(&mut self, header: &Header, size: u64) -> Result<Content, TarError> {
        let (slots, mut more, real_size) = header.gnu_sparse()?;
        let mut map = Map::default();
        map.push_slots(slots)?;
        while more {
            let mut block = [0; BLOCK];
            self.read_block(&mut block)?;
            map.push_slots(&block[..504])?;
            more = block[504] != 0;
        }
        self.expect_body(size)?;
        let data = Data::Sparse(map.finish(real_size, size, self.position)?);
        Ok(Content::File { size: real_size, data })
    }

    /// The body of an entry that only describes the next one.
    fn special(&mut self, header: &Header, what: &'static str, limit: u64) -> Result<Vec<u8>, TarError> {
        let size = header.size()?;
        if size > limit {
            return Err(TarError::TooLong { what, size, limit });
        }
        self.expect_body(size)?;
        let mut bytes = vec![0; usize::try_from(size).expect("within the limit")];
        self.read(&mut bytes)?;
        self.pending -= size;
        Ok(bytes)
    }

    fn expect_body(&mut self, size: u64) -> Result<(), TarError> {
        self.pending = size.checked_next_multiple_of(BLOCK as u64).ok_or(TarError::Number("size"))?;
        self.position.checked_add(self.pending).ok_or(TarError::Number("size"))?;
        Ok(())
    }

    fn skip_pending(&mut self) -> Result<(), TarError> {
        while self.pending > 0 {
            let buffered = match self.input.fill_buf() {
                Ok(buffered) => buffered.len(),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error)),
            };
            if buffered == 0 {
                return Err(TarError::Truncated);
            }
            let step = usize::try_from(self.pending).unwrap_or(usize::MAX).min(buffered);
            self.input.consume(step);
            self.pending -= step as u64;
            self.position += step as u64;
        }
        Ok(())
    }

    /// The next header block, or `None` at the end.
    fn next_header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        if self.ended || self.at_end()? {
            return Ok(None);
        }
        self.read_block(&mut block)?;
        if block.iter().any(|&b| b != 0) {
            return Ok(Some(block));
        }
        self.ended = true;
        if self.at_end()? {
            return Ok(None);
        }
        self.read_block(&mut block)?;
        match block.iter().any(|&b| b != 0) {
            true => Err(TarError::LoneZeroBlock),
            false => Ok(None),
        }
    }

    fn at_end(&mut self) -> Result<bool, TarError> {
        loop {
            match self.input.fill_buf() {
                Ok(buffered) => return Ok(buffered.is_empty()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), TarError> {
        self.read(block)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), TarError> {
        self.input.read_exact(bytes).map_err(broken)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// A decoder's own complaint about a short stream and ours about a short archive are told apart by the decoder's message.
fn broken(error: io::Error) -> TarError {
    match error.kind() {
        ErrorKind::UnexpectedEof if error.get_ref().is_none() => TarError::Truncated,
        _ => TarError::Io(error),
    }
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(nul) = name.iter().position(|&b| b == 0) {
        name.truncate(nul);
    }
    name
}

/// `u32::MAX` is "no change" to the kernel and no owner.
fn owner(pax: Option<u32>, header: Result<i64, TarError>, field: &'static str) -> Result<u32, TarError> {
    let id = match pax {
        Some(id) => id,
        None => u32::try_from(header?).map_err(|_| TarError::Number(field))?,
    };
    if id == u32::MAX { Err(TarError::Number(field)) } else { Ok(id) }
}
