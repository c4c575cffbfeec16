//! Which byte ranges to read for some rows and columns of a tensor.

use std::ops::Range;

use crate::error::Result;
use crate::layout::Tensor;
use crate::narrow::to_usize;
use crate::runs::Runs;

/// Gaps of at most so many bytes are read and thrown away, because another call would cost more. Measured (CPU time of
/// `pread` from the page cache, AMD EPYC with AVX-512, Linux 6.18): 0.68 us for 512 bytes, 1.02 us for 4 KiB, 1.58 us for
/// 8 KiB, 100 us for 512 KiB; so a call costs 0.6 us and 4 KiB cost about as much. A disk reads pages of 4 KiB anyway.
pub(crate) const MAX_GAP: u64 = 4096;
/// Spans with gaps in them end after so many bytes, which bounds the memory for them.
const MAX_SPAN: u64 = 1 << 20;

/// The byte ranges of the elements in `rows` and `cols`, row by row, ascending.
pub(crate) fn strips<'a>(
    tensor: &Tensor,
    rows: &'a Runs,
    cols: &'a Runs,
) -> impl Iterator<Item = Range<u64>> + 'a {
    let size = tensor.dtype.size();
    let stride = tensor.cols * size;
    let whole = u64::from(cols.len()) == tensor.cols;
    let runs = rows.as_slice().iter().map(move |run| {
        // Whole rows that follow one another are one strip.
        let (start, end) = (u64::from(run.start), u64::from(run.end));
        if whole {
            (start, start + 1, end)
        } else {
            (start, end, start + 1)
        }
    });
    runs.flat_map(move |(first, end, until)| {
        (first..end).flat_map(move |row| {
            cols.as_slice().iter().map(move |run| {
                let start = row * stride + u64::from(run.start) * size;
                if whole {
                    start..until * stride
                } else {
                    start..row * stride + u64::from(run.end) * size
                }
            })
        })
    })
}

/// Strips joined to what one call reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spans {
    spans: Vec<Span>,
    max_gap: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Span {
    bytes: Range<u64>,
    strips: Vec<Range<u64>>,
}

impl Spans {
    /// Calls that cost as much as [`MAX_GAP`] says.
    pub(crate) fn through_small_gaps() -> Self {
        Self::through_gaps(MAX_GAP)
    }

    /// Calls that cost nothing, and are counted: of blocks that were fetched before, each byte is asked for once.
    pub(crate) fn without_gaps() -> Self {
        Self::through_gaps(0)
    }

    fn through_gaps(max_gap: u64) -> Self {
        let spans = Vec::new();
        Self { spans, max_gap }
    }

    /// Add a strip that starts at or after the end of the last one.
    pub(crate) fn add(&mut self, strip: Range<u64>) {
        if let Some(span) = self.spans.last_mut() {
            let gap = strip.start - span.bytes.end;
            let joined = strip.end - span.bytes.start;
            if gap == 0
                && let [only] = span.strips.as_mut_slice()
            {
                span.bytes.end = strip.end;
                only.end = strip.end;
                return;
            }
            if gap <= self.max_gap && joined <= MAX_SPAN {
                span.bytes.end = strip.end;
                span.strips.push(strip);
                return;
            }
        }
        self.spans.push(Span {
            bytes: strip.clone(),
            strips: vec![strip],
        });
    }

    /// Read all, and put the strips one after the other into `buffer`, which must be that long.
    #[expect(clippy::indexing_slicing, reason = "the strips of a span lie within it")]
    pub(crate) fn read(
        &self,
        buffer: &mut [u8],
        read_at: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut rest = buffer;
        let mut scratch = Vec::new();
        for span in &self.spans {
            let start = span.bytes.start;
            if let [strip] = span.strips.as_slice() {
                let (target, after) = rest.split_at_mut(to_usize(strip.end - start));
                read_at(start, target)?;
                rest = after;
                continue;
            }
            scratch.resize(to_usize(span.bytes.end - start), 0);
            read_at(start, &mut scratch)?;
            for strip in &span.strips {
                let (target, after) = rest.split_at_mut(to_usize(strip.end - strip.start));
                target.copy_from_slice(&scratch[to_usize(strip.start - start)..to_usize(strip.end - start)]);
                rest = after;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(strips: impl IntoIterator<Item = Range<u64>>) -> Vec<(Range<u64>, usize)> {
        let mut spans = Spans::through_small_gaps();
        strips.into_iter().for_each(|strip| spans.add(strip));
        spans
            .spans
            .into_iter()
            .map(|span| (span.bytes, span.strips.len()))
            .collect()
    }

    #[test]
    fn small_gaps_are_read_through_and_large_ones_are_not() {
        assert_eq!(spans([0..10, 10..30]), [(0..30, 1)]);
        assert_eq!(spans([0..10, 10 + MAX_GAP..20 + MAX_GAP]), [(0..20 + MAX_GAP, 2)]);
        assert_eq!(spans([0..10, 11 + MAX_GAP..12 + MAX_GAP]).len(), 2);
        // What is read through is bounded, what is wanted as a whole is not.
        let strided = spans((0..4096).map(|row| row * 4096..row * 4096 + 512));
        assert!(
            strided
                .iter()
                .all(|(bytes, _)| bytes.end - bytes.start <= MAX_SPAN)
        );
        assert_eq!(strided.iter().map(|(_, strips)| strips).sum::<usize>(), 4096);
        assert_eq!(spans(std::iter::once(0..3 * MAX_SPAN)), [(0..3 * MAX_SPAN, 1)]);
    }

    #[test]
    fn strips_arrive_in_order() {
        let data: Vec<u8> = (0..20_000).map(|i| (i % 251) as u8).collect();
        let strips = [5..9, 9..10, 100..200, 9_000..9_001, 19_000..20_000];
        let mut all = Spans::through_small_gaps();
        let wanted: Vec<u8> = strips
            .into_iter()
            .inspect(|strip| all.add(strip.clone()))
            .flat_map(|strip| data[strip.start as usize..strip.end as usize].to_vec())
            .collect();
        let mut found = vec![0; wanted.len()];
        let mut calls = 0;
        all.read(&mut found, &mut |offset, target| {
            calls += 1;
            target.copy_from_slice(&data[offset as usize..][..target.len()]);
            Ok(())
        })
        .unwrap();
        assert_eq!(found, wanted);
        assert_eq!(calls, 3);
    }
}
