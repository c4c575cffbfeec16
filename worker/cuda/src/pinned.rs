//! Pinned memory of the host: copies to and from it need no detour, and the device sees it.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use cudarc::driver::{CudaContext, DriverError, result, sys};

/// Numbers for which every pattern of bits is a value.
///
/// # Safety
/// All bits zero, and any others, must be a value.
pub(crate) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: integers and floats.
unsafe impl Plain for u8 {}
unsafe impl Plain for u16 {}
unsafe impl Plain for u32 {}
unsafe impl Plain for u64 {}
unsafe impl Plain for f32 {}

/// An array in pinned memory.
#[derive(Debug)]
pub(crate) struct Pinned<T> {
    pointer: NonNull<T>,
    len: usize,
    address: u64,
    context: Arc<CudaContext>,
}

// SAFETY: it owns its memory, and hands out parts of it by the rules of references.
unsafe impl<T: Plain> Send for Pinned<T> {}
unsafe impl<T: Plain> Sync for Pinned<T> {}

impl<T: Plain> Pinned<T> {
    /// `len` zeros, at least one.
    pub(crate) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let len = len.max(1);
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the size is not 0; the memory is given back in `drop`.
        let pointer = unsafe { result::malloc_host(len * size_of::<T>(), flags) }?.cast::<T>();
        let Some(pointer) = NonNull::new(pointer) else {
            return Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        };
        let mut pinned = Self {
            pointer,
            len,
            address: 0,
            context: Arc::clone(context),
        };
        // SAFETY: the memory was allocated above with this length, and zeros are values.
        unsafe {
            pinned.pointer.as_ptr().write_bytes(0, len);
            let host = pinned.pointer.as_ptr().cast();
            sys::cuMemHostGetDevicePointer_v2(&raw mut pinned.address, host, 0).result()?;
        }
        Ok(pinned)
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: allocated with this length and filled with values.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }

    /// Where the device sees it.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Put values at `at`.
    ///
    /// # Safety
    /// Nobody else may read or write that part at the same time.
    pub(crate) unsafe fn put(&self, at: usize, values: &[T]) {
        assert!(at + values.len() <= self.len, "a part beyond the end");
        // SAFETY: inside the array, and the caller promises that nobody else has this part.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.pointer.as_ptr().add(at), values.len())
        };
    }

    /// A value that the device may be writing now.
    pub(crate) fn read(&self, at: usize) -> T {
        assert!(at < self.len, "an element beyond the end");
        // SAFETY: inside the array; a number is read whole.
        unsafe { self.pointer.as_ptr().add(at).read_volatile() }
    }
}

impl Pinned<u32> {
    /// A word that the device reads and writes, too.
    pub(crate) fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at < self.len, "an element beyond the end");
        // SAFETY: inside the array, which is aligned, lives as long as `self`, and is changed by whole words only.
        unsafe { AtomicU32::from_ptr(self.pointer.as_ptr().add(at)) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let bound = self.context.bind_to_thread();
        // SAFETY: allocated in `new`, and given back once. Owners wait for the device before they drop it.
        let freed = bound.and_then(|()| unsafe { result::free_host(self.pointer.as_ptr().cast()) });
        self.context.record_err(freed);
    }
}
