//! Sharing a scan among threads: tasks that own a part of the channels, and the sums over what they found.

use crate::host::{self, Disjoint};
use crate::simd::Real;

/// One task: a range of one group's channels (or heads) over one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Sequence.
    pub(crate) segment: usize,
    /// Group whose maps the channels share.
    pub(crate) group: usize,
    /// Which part of the group.
    pub(crate) index: usize,
    /// First channel, counted over all groups.
    pub(crate) start: usize,
    /// Channels.
    pub(crate) len: usize,
}

/// How many of the `heads` of a sequence one task takes, chunk by chunk of tokens. Heads of a token lie side by side, and
/// tokens a page apart: heads together pay for the way to a page once.
pub(crate) fn heads_together(sequences: usize, heads: usize) -> usize {
    const TASKS_PER_THREAD: usize = 2;
    /// So many states, and what a chunk makes of each, stay in the second-level cache.
    const MOST: usize = 8;
    (sequences * heads / (TASKS_PER_THREAD * host::threads())).clamp(1, MOST)
}

/// Cuts the `width` channels of each group into the same number of parts, multiples of `grain` but for the last: as
/// many as keep all threads busy. Gives the tasks, and the number of parts in a group.
pub(crate) fn parts(segments: usize, groups: usize, width: usize, grain: usize) -> (Vec<Part>, usize) {
    const TASKS_PER_THREAD: usize = 4;
    let wanted = (TASKS_PER_THREAD * crate::host::threads()).div_ceil((segments * groups).max(1));
    let len = width.div_ceil(wanted).next_multiple_of(grain).max(1);
    let count = width.div_ceil(len);
    let mut tasks = Vec::with_capacity(segments * groups * count);
    for segment in 0..segments {
        for group in 0..groups {
            tasks.extend((0..count).map(|index| {
                let start = index * len;
                Part { segment, group, index, start: group * width + start, len: len.min(width - start) }
            }));
        }
    }
    (tasks, count)
}

/// Adds up partial results of `len` numbers that lie one after the other, in their order, whatever the threads.
pub(crate) fn sum<T: Real>(mut partial: Vec<T>, len: usize) -> Vec<T> {
    const GRAIN: usize = 4096;
    if partial.len() <= len {
        partial.resize(len, T::ZERO);
        return partial;
    }
    let (total, rest) = partial.split_at_mut(len);
    let total = Disjoint::new(total);
    host::parallel(len.div_ceil(GRAIN), |i| {
        let (start, size) = (i * GRAIN, GRAIN.min(len - i * GRAIN));
        // SAFETY: each task has its own range.
        let total = unsafe { total.slice(start, size) };
        for part in rest.chunks_exact(len) {
            total.iter_mut().zip(&part[start..]).for_each(|(t, &p)| *t += p);
        }
    });
    partial.truncate(len);
    partial
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_each_channel_once() {
        for (segments, groups, width, grain) in
            [(1, 1, 1536, 64), (3, 2, 65, 16), (1, 5, 1, 16), (2, 1, 24, 1), (0, 1, 8, 1)]
        {
            let (tasks, count) = parts(segments, groups, width, grain);
            let mut seen = vec![0; segments * groups * width];
            for t in &tasks {
                assert!(t.index < count);
                assert_eq!(t.start / width, t.group);
                (0..t.len).for_each(|k| seen[t.segment * groups * width + t.start + k] += 1);
            }
            assert!(seen.iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn sums_add_up() {
        let partial: Vec<f64> = (0..30_000).map(f64::from).collect();
        let total = sum(partial, 10_000);
        assert_eq!((total.len(), total[7]), (10_000, 7.0 * 3.0 + 30_000.0));
        assert_eq!(sum(Vec::<f64>::new(), 2), [0.0, 0.0]);
    }
}
