//! Numbers as narrower ones. What does not fit becomes the largest one, which no file has: looking there, or making room for it, fails.

/// As an index or a length; exact on the machines that Llamero runs on.
pub(crate) fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// As a number of rows, columns or ranks, which headers bound by 2^24.
pub(crate) fn to_u32(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}
