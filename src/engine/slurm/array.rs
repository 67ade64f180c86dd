//! Task indices → array indices.

use crate::plan::TaskSet;

/// The longest text of an `--array` option that is written: well below what Slurm takes for one line.
const ARRAY_TEXT: usize = 4000;

/// What goes into one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub tasks: TaskSet,
    /// Task index = array index + offset.
    pub offset: u32,
}

/// Splits `tasks` into jobs whose array indices lie below `array_size`, with at most `array_tasks` tasks each.
///
/// Windows begin at multiples of `array_size`, so that a task has the same array index whichever of its neighbours
/// run: `aftercorr` depends on it.
pub fn chunks(tasks: &TaskSet, array_size: u32, array_tasks: Option<u32>) -> Vec<Chunk> {
    let array_size = array_size.max(1);
    let most = array_tasks.unwrap_or(array_size).max(1);
    let mut chunks = Vec::new();
    let mut open: Vec<(u32, u32)> = Vec::new();
    let (mut offset, mut count, mut text) = (0, 0, 0);
    for (first, last) in pieces(tasks, array_size, most) {
        let window = first - first % array_size;
        let length = range(first - window, last - window).len() + 1;
        if !open.is_empty() && (window != offset || count + (last - first + 1) > most || text + length > ARRAY_TEXT) {
            chunks.push(chunk(&open, offset));
            open.clear();
            (count, text) = (0, 0);
        }
        offset = window;
        count += last - first + 1;
        text += length;
        open.push((first, last));
    }
    if !open.is_empty() {
        chunks.push(chunk(&open, offset));
    }
    chunks
}

fn chunk(ranges: &[(u32, u32)], offset: u32) -> Chunk {
    Chunk {
        tasks: ranges.iter().flat_map(|&(first, last)| first..=last).collect(),
        offset,
    }
}

/// The ranges of `tasks`, cut at window borders and after `most` tasks.
fn pieces(tasks: &TaskSet, array_size: u32, most: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
    tasks.ranges().iter().flat_map(move |&(first, last)| {
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let from = next?;
            let window = from - from % array_size;
            let to = last.min(window.saturating_add(array_size - 1)).min(from.saturating_add(most - 1));
            next = (to < last).then(|| to + 1);
            Some((from, to))
        })
    })
}

/// The value of `--array`, without a limit: `0-9,15`.
pub fn indices(chunk: &Chunk) -> String {
    let ranges: Vec<String> = (chunk.tasks.ranges().iter())
        .map(|&(first, last)| range(first - chunk.offset, last - chunk.offset))
        .collect();
    ranges.join(",")
}

fn range(first: u32, last: u32) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(indices: &[u32]) -> TaskSet {
        indices.iter().copied().collect()
    }

    fn texts(chunks: &[Chunk]) -> Vec<(u32, String)> {
        chunks.iter().map(|chunk| (chunk.offset, indices(chunk))).collect()
    }

    #[test]
    fn a_hundred_thousand_shards_are_a_hundred_jobs() {
        let chunks = chunks(&TaskSet::all(100_000), 1001, None);
        assert_eq!(chunks.len(), 100);
        assert_eq!((chunks[1].offset, indices(&chunks[1])), (1001, "0-1000".to_owned()));
        assert_eq!(indices(&chunks[99]), "0-900");
        assert_eq!(chunks.iter().map(|chunk| chunk.tasks.len()).sum::<u32>(), 100_000);
    }

    #[test]
    fn an_index_is_the_same_whichever_neighbours_run() {
        assert_eq!(
            texts(&chunks(&set(&[3, 12, 13, 29]), 10, None)),
            [(0, "3".to_owned()), (10, "2-3".to_owned()), (20, "9".to_owned())]
        );
        assert_eq!(chunks(&TaskSet::default(), 10, None), []);
    }

    #[test]
    fn neither_the_number_of_tasks_nor_the_text_grows_without_bound() {
        assert_eq!(
            texts(&chunks(&TaskSet::all(7), 100, Some(3))),
            [(0, "0-2".to_owned()), (0, "3-5".to_owned()), (0, "6".to_owned())]
        );
        let odd: TaskSet = (0..100_000).filter(|index| index % 2 == 1).collect();
        let many = chunks(&odd, 4_000_001, None);
        assert!(many.iter().all(|chunk| indices(chunk).len() <= ARRAY_TEXT));
        assert_eq!(many.iter().map(|chunk| chunk.tasks.len()).sum::<u32>(), 50_000);
    }
}
