//! The names in a folder: sorted, and packed one behind the other.
//!
//! An image has as many names as files, and a map of boxed names takes 70 bytes for each of them. These lie in pieces that are small enough to be
//! searched from their start and to be moved when something comes between:
//!
//! ```text
//! piece: inode (4 bytes) │ length (2) │ name │ inode │ …
//! ```

use super::tree::InodeId;

/// Names of one folder, each of an inode.
#[derive(Debug, Default)]
pub struct Names {
    /// None of them is empty; the names of each come after those of the one before.
    pieces: Vec<Vec<u8>>,
}

/// Bytes of a piece, unless one name is longer.
const PIECE: usize = 2048;
const HEAD: usize = 6;

/// Where a name is, or would be.
struct Spot {
    piece: usize,
    /// Offset in the piece.
    at: usize,
    /// Whose name it is, if it is there.
    id: Option<InodeId>,
}

impl Names {
    pub(super) fn get(&self, name: &[u8]) -> Option<InodeId> {
        self.find(name).id
    }

    /// Gives `name` to `id`, whoever had it.
    pub(super) fn insert(&mut self, name: &[u8], id: InodeId) {
        let Spot { piece, at, id: known } = self.find(name);
        if self.pieces.is_empty() {
            self.pieces.reserve_exact(1);
            self.pieces.push(Vec::new());
        }
        let bytes = &mut self.pieces[piece];
        if known.is_some() {
            bytes[at..at + 4].copy_from_slice(&id.0.to_le_bytes());
            return;
        }
        let length = u16::try_from(name.len()).expect("a name has at most 256 bytes");
        let entry =
            id.0.to_le_bytes()
                .into_iter()
                .chain(length.to_le_bytes())
                .chain(name.iter().copied());
        if bytes.len() + HEAD + name.len() <= PIECE || bytes.is_empty() {
            bytes.splice(at..at, entry);
            return;
        }
        // What comes in order leaves full pieces behind it.
        let rest = bytes.split_off(if at == bytes.len() { at } else { middle(bytes) });
        let first = bytes.len();
        self.pieces.insert(piece + 1, rest);
        if at > first || self.pieces[piece + 1].is_empty() {
            self.pieces[piece + 1].splice(at - first..at - first, entry);
        } else {
            self.pieces[piece].splice(at..at, entry);
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        let Spot { piece, at, id: Some(_) } = self.find(name) else {
            return;
        };
        self.pieces[piece].drain(at..at + HEAD + name.len());
        if self.pieces[piece].is_empty() {
            self.pieces.remove(piece);
        }
    }

    /// In byte order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], InodeId)> {
        self.pieces.iter().flat_map(|piece| entries(piece)).map(|(_, name, id)| (name, id))
    }

    fn find(&self, name: &[u8]) -> Spot {
        let after = self
            .pieces
            .partition_point(|piece| entries(piece).next().is_some_and(|(_, first, _)| first <= name));
        let piece = after.saturating_sub(1);
        let bytes = self.pieces.get(piece).map_or(&[][..], |bytes| bytes);
        match entries(bytes).find(|(_, other, _)| *other >= name) {
            Some((at, other, id)) => Spot {
                piece,
                at,
                id: (other == name).then_some(id),
            },
            None => Spot {
                piece,
                at: bytes.len(),
                id: None,
            },
        }
    }
}

/// Offset, name and inode of each entry of a piece.
fn entries(mut rest: &[u8]) -> impl Iterator<Item = (usize, &[u8], InodeId)> {
    let whole = rest.len();
    std::iter::from_fn(move || {
        let (head, tail) = rest.split_first_chunk::<HEAD>()?;
        let [a, b, c, d, low, high] = *head;
        let (name, behind) = tail.split_at_checked(u16::from_le_bytes([low, high]).into())?;
        let at = whole - rest.len();
        rest = behind;
        Some((at, name, InodeId(u32::from_le_bytes([a, b, c, d]))))
    })
}

/// The start of an entry, about half way through a piece and not at its start.
fn middle(piece: &[u8]) -> usize {
    let starts = entries(piece).map(|(at, ..)| at);
    starts.skip(1).find(|at| *at >= piece.len() / 2).unwrap_or(piece.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Against a map that is known to be right.
    #[test]
    fn they_are_a_sorted_map() {
        let mut random = fastrand::Rng::with_seed(1);
        for kinds in [10, 300, 20_000] {
            let (mut names, mut expected) = (Names::default(), BTreeMap::new());
            for step in 0..20_000 {
                let number = random.u32(..kinds);
                let name = match number % 7 {
                    0 => [&number.to_string().into_bytes()[..], &[b'x'; 250]].concat(),
                    _ => number.to_string().into_bytes(),
                };
                if random.u8(..3) == 0 {
                    names.remove(&name);
                    expected.remove(&name);
                } else {
                    names.insert(&name, InodeId(step));
                    expected.insert(name.clone(), InodeId(step));
                }
                assert_eq!(names.get(&name), expected.get(&name).copied());
            }
            assert!(names.iter().eq(expected.iter().map(|(name, id)| (&name[..], *id))));
            for piece in &names.pieces {
                assert!((1..=PIECE).contains(&piece.len()), "{}", piece.len());
            }
        }
    }

    #[test]
    fn what_comes_in_order_is_packed_densely() {
        let mut names = Names::default();
        let mut bytes = 0;
        for number in 0..100_000 {
            let name = format!("file-{number:06}");
            bytes += HEAD + name.len();
            names.insert(name.as_bytes(), InodeId(number));
        }
        let taken: usize = names.pieces.iter().map(|piece| piece.capacity() + size_of::<Vec<u8>>()).sum();
        assert!(taken < bytes * 11 / 10, "{taken} for {bytes}");
        assert_eq!(names.get(b"file-054321"), Some(InodeId(54_321)));
    }
}
