//! A slice that several threads write at disjoint places.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice handed to tasks of which each writes its own part.
pub(crate) struct DisjointSlice<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `part`, whose callers promise that parts taken at the same time do not overlap; elements may
// be sent to other threads because T is Send.
unsafe impl<T: Send> Sync for DisjointSlice<'_, T> {}

impl<'a, T> DisjointSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: PhantomData,
        }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other part that overlaps `range` may be alive.
    ///
    /// # Panics
    /// When `range` is not inside the slice.
    #[allow(
        clippy::mut_from_ref,
        reason = "that is the point; the caller keeps the parts apart"
    )]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "part {range:?} of {} elements",
            self.len
        );
        // SAFETY: inside the borrowed slice, and by the caller's promise nobody else uses these elements.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
