//! Whole decode steps as graphs: one launch each. They are captured when a batch of their size first comes, or before.

use std::collections::HashMap;

use cudarc::driver::CudaGraph;

use crate::ops::MAX_ROWS;
use crate::sample::Wants;

/// Graphs that are kept: more are captured again.
const MOST: usize = 96;
/// So many uses a graph is kept for after its last one. Where more kinds of steps than [`MOST`] take turns, the others are enqueued launch by launch: to
/// capture one of them each time would cost more than its launches.
const KEPT_FOR: u64 = 4 * MOST as u64;
/// Positions of a chunk of attention.
const CHUNK: usize = 256;

/// What a graph computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The buffers that it reads from and writes to.
    pub(super) lane: usize,
    /// Rows, some of which may only fill up the batch.
    pub(super) rows: usize,
    /// Tokens that a row sees at most.
    pub(super) longest: usize,
    /// Candidates; none: they wait for biases and masks.
    pub(super) sampling: Option<Wants>,
}

/// Rows of the graph that serves so many.
pub(super) fn bucket(rows: usize) -> usize {
    rows.next_power_of_two().min(MAX_ROWS)
}

/// All sizes of graphs.
pub(super) fn buckets() -> impl Iterator<Item = usize> {
    (0..).map(|power| 1 << power).take_while(|rows| *rows <= MAX_ROWS)
}

/// Tokens that rows of the graph see at most which serves so many.
pub(super) fn reach(longest: usize) -> usize {
    longest.div_ceil(CHUNK).next_power_of_two() * CHUNK
}

/// Graphs of a formed group.
#[derive(Default)]
pub(super) struct Graphs {
    graphs: HashMap<Key, (CudaGraph, u64)>,
    uses: u64,
}

impl Graphs {
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.graphs.contains_key(key)
    }

    /// The graph, if it was captured.
    pub(super) fn get(&mut self, key: &Key) -> Option<&CudaGraph> {
        self.uses += 1;
        let (graph, used) = self.graphs.get_mut(key)?;
        *used = self.uses;
        Some(graph)
    }

    /// Keep a graph, for which there is room.
    pub(super) fn insert(&mut self, key: Key, graph: CudaGraph) {
        self.uses += 1;
        self.graphs.insert(key, (graph, self.uses));
    }

    /// Whether there is room for another graph.
    pub(super) fn has_room(&self) -> bool {
        self.graphs.len() < MOST
    }

    /// The graph to drop for another one: that which was not used for longest, if that is long enough. It must not be under way then.
    pub(super) fn unused(&self) -> Option<Key> {
        let (key, (_, used)) = self.graphs.iter().min_by_key(|(_, (_, used))| *used)?;
        (self.uses - used > KEPT_FOR).then_some(*key)
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.graphs.remove(key);
    }
}

// SAFETY: a graph may be used by one thread at a time, and only the thread that has the group uses it.
unsafe impl Send for Graphs {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_and_contexts_are_rounded_up() {
        assert_eq!([1, 2, 3, 5, 33, 64].map(bucket), [1, 2, 4, 8, 64, 64]);
        assert_eq!(buckets().collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(
            [1, 256, 257, 600, 131_072].map(reach),
            [256, 256, 512, 1024, 131_072]
        );
    }
}
