//! Which files have which content: what is the same is stored once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

use rayon::prelude::*;

use crate::image::layers::Merged;
use crate::image::tree::{Body, Data, InodeId, Segment};
use crate::oci::{Algorithm, Digest, Hasher};

/// Of each inode, the number of its content; [`NOTHING`] where there is none.
pub(super) struct Contents(Vec<u32>);

const NOTHING: u32 = u32::MAX;

impl Contents {
    /// The content of an inode, if it is a file that is not empty.
    pub(super) fn of(&self, id: InodeId) -> Option<usize> {
        let content = self.0[id.0 as usize];
        (content != NOTHING).then_some(content as usize)
    }
}

/// A file whose content may not be its alone.
#[derive(Clone, Copy)]
struct Candidate {
    size: u64,
    /// A checksum of how it begins.
    print: u32,
    /// Index into the list of files.
    file: u32,
}

/// Finds the distinct contents, numbered in the order in which the layers hold them, and the first file that has each.
pub(super) fn distinct(merged: &Merged) -> io::Result<(Contents, Vec<InodeId>)> {
    let tree = &merged.tree;
    let with_content = |&id: &InodeId| tree.body(id).filter(|body| body.size > 0);
    let mut files: Vec<InodeId> = tree.files().map(|(id, _)| id).filter(|id| with_content(id).is_some()).collect();
    files.sort_by_key(|id| with_content(id).map(|body| (body.layer, first_offset(body))));
    let repeated = repeated(merged, &files)?;
    let mut repeated = repeated.iter().peekable();
    let mut of = vec![NOTHING; tree.inodes.len()];
    let mut firsts = Vec::new();
    for (at, &id) in (0_u32..).zip(&files) {
        of[id.0 as usize] = match repeated.next_if(|(file, _)| *file == at) {
            Some(&(_, first)) => of[files[first as usize].0 as usize],
            None => {
                firsts.push(id);
                u32::try_from(firsts.len() - 1).expect("fewer than inodes")
            }
        };
    }
    Ok((Contents(of), firsts))
}

/// Every file whose content an earlier one has, and the first that has it, as indexes into `files`; in their order.
fn repeated(merged: &Merged, files: &[InodeId]) -> io::Result<Vec<(u32, u32)>> {
    let body = |file: u32| merged.tree.body(files[file as usize]).expect("it is a file");
    let files = 0..u32::try_from(files.len()).expect("fewer than inodes");
    let candidates = files.map(|file| Candidate {
        size: body(file).size,
        print: 0,
        file,
    });
    // A size that occurs once needs no look at the bytes to be known as different.
    let mut candidates = only_alike(candidates.collect());
    // In the order of the layers, which lie on a disk.
    candidates.sort_unstable_by_key(|candidate| candidate.file);
    candidates
        .par_iter_mut()
        .try_for_each(|candidate| fingerprint(merged, body(candidate.file)).map(|print| candidate.print = print))?;
    let candidates = only_alike(candidates);
    let mut repeated = candidates
        .par_chunk_by(alike)
        .map(|group| {
            let digests: Vec<Digest> = group
                .par_iter()
                .map(|same| digest(merged, body(same.file)))
                .collect::<io::Result<_>>()?;
            let mut known = HashMap::new();
            let firsts = group
                .iter()
                .zip(digests)
                .map(|(same, digest)| (same.file, *known.entry(digest).or_insert(same.file)));
            Ok(firsts.filter(|(file, first)| file != first).collect())
        })
        .try_reduce(Vec::new, |mut all, more| {
            all.extend(more);
            io::Result::Ok(all)
        })?;
    repeated.sort_unstable();
    Ok(repeated)
}

fn alike(a: &Candidate, b: &Candidate) -> bool {
    (a.size, a.print) == (b.size, b.print)
}

/// Those that are alike, side by side.
fn only_alike(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_unstable_by_key(|candidate| (candidate.size, candidate.print, candidate.file));
    let groups = candidates.chunk_by(alike).filter(|group| group.len() > 1);
    groups.flatten().copied().collect()
}

thread_local! {
    /// What a thread is reading: fresh memory for each file would cost more than small files do.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 128 << 10]);
}

/// A checksum of a file's first bytes: most files that are not the same are known by it.
fn fingerprint(merged: &Merged, body: &Body) -> io::Result<u32> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut checksum = libdeflater::Crc::new();
        if let Some(Segment { length, offset, .. }) = body.segments().next() {
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
            merged.read_exact_at(body, &mut buffer[..length], offset)?;
            checksum.update(&buffer[..length]);
        }
        Ok(checksum.sum())
    })
}

/// Of what is stored and where: two files with the same bytes but other holes are stored twice.
fn digest(merged: &Merged, body: &Body) -> io::Result<Digest> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for Segment { at, length, mut offset } in body.segments() {
            hasher.update(&at.to_le_bytes());
            hasher.update(&length.to_le_bytes());
            let end = offset + length;
            while offset < end {
                let step = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
                merged.read_exact_at(body, &mut buffer[..step], offset)?;
                hasher.update(&buffer[..step]);
                offset += step as u64;
            }
        }
        Ok(hasher.finish())
    })
}

fn first_offset(body: &Body) -> u64 {
    match &body.data {
        Data::Plain(offset) => *offset,
        Data::Sparse(segments) => segments.first().map_or(0, |segment| segment.offset),
    }
}
