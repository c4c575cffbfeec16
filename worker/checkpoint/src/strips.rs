//! Which byte ranges to read for some rows and columns of a tensor.

use std::ops::Range;

use crate::error::Result;
use crate::layout::Tensor;
use crate::runs::Runs;

/// Gaps of at most so many bytes are read and thrown away, because another call would cost more. Measured: `pread` from the
/// page cache took 0.35 us a call and 0.09 us a KiB (11 GB/s) on an AMD EPYC of the Zen 4 family, so a call costs as much
/// as 4 KiB; on a disk the unit is a page of 4 KiB anyway. `cargo test --release -p llamero-checkpoint -- --ignored
/// a_call_costs` measures both again.
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
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans(Vec<Span>);

#[derive(Debug, PartialEq, Eq)]
struct Span {
    bytes: Range<u64>,
    strips: Vec<Range<u64>>,
}

impl Spans {
    /// Add a strip that starts at or after the end of the last one.
    pub(crate) fn add(&mut self, strip: Range<u64>) {
        if let Some(span) = self.0.last_mut() {
            let gap = strip.start - span.bytes.end;
            let joined = strip.end - span.bytes.start;
            if gap == 0 && span.strips.len() == 1 {
                span.bytes.end = strip.end;
                span.strips[0].end = strip.end;
                return;
            }
            if gap <= MAX_GAP && joined <= MAX_SPAN {
                span.bytes.end = strip.end;
                span.strips.push(strip);
                return;
            }
        }
        self.0.push(Span {
            bytes: strip.clone(),
            strips: vec![strip],
        });
    }

    /// Bytes that are read, gaps included.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|span| span.bytes.end - span.bytes.start).sum()
    }

    /// Read all, and put the strips one after the other into `buffer`, which must be that long.
    pub(crate) fn read(
        &self,
        buffer: &mut [u8],
        read_at: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut rest = buffer;
        let mut scratch = Vec::new();
        for span in &self.0 {
            let start = span.bytes.start;
            if let [strip] = span.strips.as_slice() {
                let (target, after) = rest.split_at_mut((strip.end - start) as usize);
                read_at(start, target)?;
                rest = after;
                continue;
            }
            scratch.resize((span.bytes.end - start) as usize, 0);
            read_at(start, &mut scratch)?;
            for strip in &span.strips {
                let (target, after) = rest.split_at_mut((strip.end - strip.start) as usize);
                target
                    .copy_from_slice(&scratch[(strip.start - start) as usize..(strip.end - start) as usize]);
                rest = after;
            }
        }
        Ok(())
    }
}
