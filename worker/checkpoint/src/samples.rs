//! Which bytes of a tensor stand for all of it.

use std::ops::Range;

use sha2::{Digest, Sha256};

/// Bytes of a sample: one page of a disk.
pub(crate) const SAMPLE: u64 = 4096;

/// `count` byte ranges of a tensor of `size` bytes, at places that follow from its name and size: one somewhere in each of
/// `count` equal parts, at a multiple of a page. All of a tensor that has no more than that.
pub(crate) fn samples(name: &str, size: u64, count: u64) -> Vec<Range<u64>> {
    let pages = size / SAMPLE;
    if pages <= count {
        return std::iter::once(0..size).filter(|all| all.end > 0).collect();
    }
    (0..count)
        .map(|part| {
            let (first, end) = (pages * part / count, pages * (part + 1) / count);
            let digest = Sha256::digest(format!("{name} {size} {part}"));
            let draw = digest
                .iter()
                .take(8)
                .fold(0, |number, byte| number << 8 | u64::from(*byte));
            let start = (first + draw % (end - first)) * SAMPLE;
            start..start + SAMPLE
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_lie_apart_inside_the_tensor_and_stay_where_they_are() {
        let found = samples("a", 1_000_000, 3);
        assert_eq!(found.len(), 3);
        assert!(
            found
                .iter()
                .all(|range| range.end - range.start == SAMPLE && range.end <= 1_000_000)
        );
        assert!(found.is_sorted_by(|a, b| a.end <= b.start));
        assert_eq!(found, samples("a", 1_000_000, 3));
        assert_ne!(found, samples("b", 1_000_000, 3));
        assert_eq!(samples("a", 5000, 3), std::slice::from_ref(&(0..5000)));
        assert_eq!(samples("a", 0, 3), []);
    }
}
