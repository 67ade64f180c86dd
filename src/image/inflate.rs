//! Decompression on a thread of its own, so that whoever hashes and indexes a layer never waits for itself.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// How a layer's blob is compressed, by its first bytes: media types are not always true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Plain,
    Gzip,
    Zstd,
    /// Known by this name, and of no layer.
    Unknown(&'static str),
}

impl Format {
    /// Nothing of the input is consumed.
    pub(super) fn of(mut input: BufReader<File>) -> io::Result<(Format, BufReader<File>)> {
        let format = match input.fill_buf()? {
            [0x1f, 0x8b, ..] => Format::Gzip,
            // A frame, or a skippable frame before one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
            [b'B', b'Z', b'h', ..] => Format::Unknown("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Format::Unknown("xz"),
            _ => Format::Plain,
        };
        Ok((format, input))
    }
}

/// Bytes that are handed over at once; enough that the threads seldom meet, and small enough for a core's cache.
const CHUNK: usize = 256 << 10;
/// How many such the other thread may be ahead.
const AHEAD: usize = 8;

/// A stream that another thread reads ahead. The thread ends at the end of the stream, or soon after this is dropped.
pub(super) struct Ahead {
    full: Receiver<io::Result<Chunk>>,
    /// Buffers that have been read, to be filled again.
    empty: SyncSender<Vec<u8>>,
    chunk: Chunk,
    at: usize,
    ended: bool,
}

#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// Of `bytes`; the rest is left from before.
    filled: usize,
}

impl Ahead {
    /// `open` is called on the other thread; what goes wrong there is told by the first read.
    pub(super) fn new<R: Read>(open: impl FnOnce() -> io::Result<R> + Send + 'static) -> Ahead {
        let (full_sender, full) = sync_channel(AHEAD);
        let (empty, empty_receiver) = sync_channel::<Vec<u8>>(AHEAD + 2);
        let started = thread::Builder::new().name("inflate".to_owned()).spawn({
            let full_sender = full_sender.clone();
            move || {
                if let Err(error) = read_ahead(open, &full_sender, &empty_receiver) {
                    // Whoever would want to know is gone.
                    drop(full_sender.send(Err(error)));
                }
            }
        });
        if let Err(error) = started {
            drop(full_sender.send(Err(error)));
        }
        Ahead {
            full,
            empty,
            chunk: Chunk::default(),
            at: 0,
            ended: false,
        }
    }
}

fn read_ahead<R: Read>(
    open: impl FnOnce() -> io::Result<R>,
    full: &SyncSender<io::Result<Chunk>>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut stream = open()?;
    loop {
        let mut bytes = empty.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
        let mut filled = 0;
        let mut failure = None;
        while filled < bytes.len() {
            match stream.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let ended = filled < bytes.len();
        // What came before a fault is read first: the archive's own may be found there.
        if filled > 0 && full.send(Ok(Chunk { bytes, filled })).is_err() {
            return Ok(());
        }
        match failure {
            Some(error) => return Err(error),
            None if ended => return Ok(()),
            None => {}
        }
    }
}

impl BufRead for Ahead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.filled && !self.ended {
            match self.full.recv() {
                Ok(Ok(chunk)) => {
                    let read = std::mem::replace(&mut self.chunk, chunk);
                    self.at = 0;
                    if !read.bytes.is_empty() {
                        // It is gone when it has come to the end: then nothing needs this buffer.
                        drop(self.empty.try_send(read.bytes));
                    }
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                // The sender is gone without a fault: the end.
                Err(_) => self.ended = true,
            }
        }
        Ok(&self.chunk.bytes[self.at..self.chunk.filled])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.chunk.filled);
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_whole_and_in_order() {
        let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        let input = bytes.clone();
        let mut read = Vec::new();
        Ahead::new(move || Ok(io::Cursor::new(input))).read_to_end(&mut read).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_fault_comes_after_what_was_before_it() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let mut stream = Ahead::new(|| Ok(io::Cursor::new(vec![7; 300_000]).chain(Broken)));
        let mut read = Vec::new();
        assert_eq!(stream.read_to_end(&mut read).unwrap_err().to_string(), "broken");
        assert!(read == vec![7; 300_000]);
        let mut unopened = Ahead::new(|| Err::<io::Empty, _>(io::Error::other("no")));
        assert_eq!(unopened.read_to_end(&mut read).unwrap_err().to_string(), "no");
    }

    #[test]
    fn what_is_not_wanted_to_its_end_is_left() {
        let mut endless = Ahead::new(|| Ok(io::repeat(1)));
        let mut some = [0; 10];
        endless.read_exact(&mut some).unwrap();
        assert_eq!(some, [1; 10]);
    }
}
