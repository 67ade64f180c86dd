//! Sets of task indices.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A set of task indices, kept as ascending, disjoint, closed ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskSet(Vec<(u32, u32)>);

impl TaskSet {
    /// `0..count`.
    pub fn all(count: u32) -> TaskSet {
        TaskSet(if count == 0 { vec![] } else { vec![(0, count - 1)] })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> u32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub fn contains(&self, index: u32) -> bool {
        let range = self.0.partition_point(|&(_, last)| last < index);
        self.0.get(range).is_some_and(|&(first, _)| first <= index)
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|&(first, last)| first..=last)
    }

    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// What is in either.
    pub fn union(&self, other: &TaskSet) -> TaskSet {
        let mut all: Vec<(u32, u32)> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut ranges: Vec<(u32, u32)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match ranges.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => ranges.push((first, last)),
            }
        }
        TaskSet(ranges)
    }

    /// What is in this and not in `other`.
    pub fn difference(&self, other: &TaskSet) -> TaskSet {
        let mut ranges = Vec::new();
        let mut holes = other.0.iter().peekable();
        for &(first, last) in &self.0 {
            let mut from = Some(first);
            while let Some(&&(start, end)) = holes.peek() {
                let Some(at) = from.filter(|_| start <= last) else { break };
                if end >= at {
                    if start > at {
                        ranges.push((at, start - 1));
                    }
                    from = end.checked_add(1).filter(|&next| next <= last);
                }
                // A hole that reaches beyond this range may cut the next one too.
                if end > last {
                    break;
                }
                holes.next();
            }
            if let Some(at) = from {
                ranges.push((at, last));
            }
        }
        TaskSet(ranges)
    }

    /// What is in both.
    pub fn intersection(&self, other: &TaskSet) -> TaskSet {
        self.difference(&self.difference(other))
    }
}

/// `0-3,7`, as Slurm writes it.
impl fmt::Display for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, &(first, last)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromIterator<u32> for TaskSet {
    /// From indices in any order, repeated or not.
    fn from_iter<I: IntoIterator<Item = u32>>(indices: I) -> Self {
        let mut sorted: Vec<u32> = indices.into_iter().collect();
        sorted.sort_unstable();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for index in sorted {
            match ranges.last_mut() {
                Some((_, last)) if index <= last.saturating_add(1) => *last = index.max(*last),
                _ => ranges.push((index, index)),
            }
        }
        TaskSet(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(indices: &[u32]) -> TaskSet {
        indices.iter().copied().collect()
    }

    #[test]
    fn sets_do_what_sets_of_numbers_do() {
        for a in 0u32..64 {
            for b in 0u32..64 {
                let members = |mask: u32| (0..6).filter(|i| mask >> i & 1 == 1).collect::<Vec<u32>>();
                let (left, right) = (set(&members(a)), set(&members(b)));
                assert_eq!(left.union(&right), set(&members(a | b)));
                assert!((0..8).all(|index| left.contains(index) == (a >> index & 1 == 1)));
                assert_eq!(left.difference(&right), set(&members(a & !b)));
                assert_eq!(left.intersection(&right), set(&members(a & b)));
            }
        }
    }

    #[test]
    fn ranges_stay_ranges() {
        let all = TaskSet::all(1_000_000);
        assert_eq!(all.ranges(), [(0, 999_999)]);
        let without = all.difference(&set(&[0, 7, 999_999]));
        assert_eq!(without.ranges(), [(1, 6), (8, 999_998)]);
        assert_eq!(without.len(), 999_997);
        assert!(!without.contains(7) && without.contains(8));
        assert_eq!(without.union(&set(&[7])).ranges(), [(1, 999_998)]);
        assert_eq!(set(&[3, 1, 2, 2, 9]).ranges(), [(1, 3), (9, 9)]);
        assert_eq!(set(&[u32::MAX, u32::MAX - 1]).ranges(), [(u32::MAX - 1, u32::MAX)]);
        assert!(TaskSet::all(0).is_empty() && TaskSet::all(0).difference(&all).is_empty());
    }
}
