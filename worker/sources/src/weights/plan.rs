//! The blocks that are going to be read, in order.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use llamero_checkpoint::remote::{Announced, BLOCK_BYTES};

use super::file::Body;
use super::sum::Sum;

/// A range that one request fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Number of its file.
    pub(super) file: usize,
    /// What to fetch.
    pub(super) range: Range<u64>,
    /// How many bytes of it are asked for before it goes; none: it stays.
    pub(super) wanted: Option<u64>,
}

impl Block {
    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// All blocks, and how to find them.
#[derive(Debug)]
pub(super) struct Plan {
    /// In the order in which they are fetched.
    pub(super) blocks: Vec<Block>,
    /// Where blocks begin, and their numbers, ascending, for each file.
    by_file: Vec<Vec<(u64, usize)>>,
    /// The files that are read whole.
    pub(super) sums: Vec<Sum>,
}

impl Plan {
    /// Of what was announced, for these files.
    pub(super) fn new(ranges: Vec<Announced>, files: &[Arc<Body>]) -> Self {
        let mut seen = BTreeSet::new();
        let mut blocks: Vec<Block> = ranges
            .into_iter()
            .filter(|announced| !announced.range.is_empty())
            .filter(|announced| seen.insert((announced.file, announced.range.start, announced.range.end)))
            .map(|announced| Block {
                file: announced.file,
                range: announced.range,
                wanted: announced.wanted,
            })
            .collect();
        let mut sums = Vec::new();
        let in_order =
            blocks.is_sorted_by(|a, b| a.file < b.file || (a.file == b.file && a.range.end <= b.range.start));
        if in_order {
            (blocks, sums) = with_sums(blocks, files);
        }
        let mut by_file = vec![Vec::new(); files.len()];
        for (number, block) in blocks.iter().enumerate() {
            if let Some(starts) = by_file.get_mut(block.file) {
                starts.push((block.range.start, number));
            }
        }
        by_file.iter_mut().for_each(|starts| starts.sort_unstable());
        Self {
            blocks,
            by_file,
            sums,
        }
    }

    /// The blocks that have `range` of a file, each with its part of it; none if some of it is in no block.
    pub(super) fn find(&self, file: usize, range: Range<u64>) -> Option<Vec<(usize, Range<u64>)>> {
        let starts = self.by_file.get(file)?;
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let before = starts.partition_point(|(start, _)| *start <= at);
            let (_, number) = *starts.get(before.checked_sub(1)?)?;
            let end = self.blocks.get(number)?.range.end.min(range.end);
            if end <= at {
                return None;
            }
            found.push((number, at..end));
            at = end;
        }
        Some(found)
    }
}

/// The blocks with what is missing of files that are nearly read whole, and the sums of these files.
fn with_sums(blocks: Vec<Block>, files: &[Arc<Body>]) -> (Vec<Block>, Vec<Sum>) {
    let (mut all, mut sums) = (Vec::with_capacity(blocks.len()), Vec::new());
    for of_file in blocks.chunk_by(|a, b| a.file == b.file) {
        let Some(first) = of_file.first() else { continue };
        let number = first.file;
        let read: u64 = of_file.iter().map(Block::bytes).sum();
        let Some(body) = files
            .get(number)
            .filter(|body| read >= body.bytes - body.bytes / 8)
        else {
            all.extend_from_slice(of_file);
            continue;
        };
        let Some(sha256) = &body.source.file.sha256 else {
            all.extend_from_slice(of_file);
            continue;
        };
        let head = usize::try_from(first.range.start).unwrap_or(usize::MAX);
        let head = body.head.get(..head).unwrap_or(body.head.as_slice());
        let begin = all.len();
        let mut at = head.len() as u64;
        for block in of_file {
            fill(number, at..block.range.start, &mut all);
            at = block.range.end;
            all.push(block.clone());
        }
        fill(number, at..body.bytes, &mut all);
        sums.push(Sum::new(
            begin..all.len(),
            head,
            sha256.clone(),
            body.source.file.path.clone(),
        ));
    }
    (all, sums)
}

/// Blocks that are fetched only for the sum.
fn fill(file: usize, gap: Range<u64>, blocks: &mut Vec<Block>) {
    let mut start = gap.start;
    while start < gap.end {
        let end = (start + BLOCK_BYTES).min(gap.end);
        blocks.push(Block {
            file,
            range: start..end,
            wanted: Some(0),
        });
        start = end;
    }
}
