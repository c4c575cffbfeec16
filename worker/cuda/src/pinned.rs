//! Pinned memory of the host: copies to and from it need no detour, and the device sees it.
//!
//! The driver waits for the whole device when it gives such memory or takes it back, so that steps take theirs from a [`Pool`].

use std::collections::HashMap;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, DriverError, result, sys};

/// Numbers for which every pattern of bits is a value.
///
/// # Safety
/// All bits zero, and any others, must be a value.
pub(crate) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: integers and floats.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
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
// SAFETY: as above.
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

/// The least that is taken from the driver at a time: a page.
const LEAST: usize = 4096;

/// Pinned memory that is used again and again. It grows to what is lent at one time, and is given back with its last owner.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    context: Arc<CudaContext>,
    /// By size, a power of two.
    free: Arc<Mutex<Free>>,
}

type Free = HashMap<usize, Vec<Pinned<u8>>>;

/// An array in memory of a pool, to which it goes back. Whoever drops it knows that the device has ended its work on it.
#[derive(Debug)]
pub(crate) struct Lent<T> {
    /// Away only while it is dropped.
    memory: Option<Pinned<u8>>,
    len: usize,
    free: Arc<Mutex<Free>>,
    values: PhantomData<T>,
}

fn lock(free: &Mutex<Free>) -> MutexGuard<'_, Free> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Self {
        Self {
            context: Arc::clone(context),
            free: Arc::default(),
        }
    }

    /// `len` numbers, whatever they are.
    pub(crate) fn take<T: Plain>(&self, len: usize) -> Result<Lent<T>, DriverError> {
        let bytes = (len * size_of::<T>()).next_power_of_two().max(LEAST);
        let found = lock(&self.free).get_mut(&bytes).and_then(Vec::pop);
        let memory = match found {
            Some(memory) => memory,
            None => Pinned::new(&self.context, bytes)?,
        };
        Ok(Lent {
            memory: Some(memory),
            len,
            free: Arc::clone(&self.free),
            values: PhantomData,
        })
    }
}

impl<T: Plain> Lent<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match &self.memory {
            // SAFETY: the memory begins with a page, holds as many numbers, and all bits are values.
            Some(memory) => unsafe { std::slice::from_raw_parts(memory.pointer.as_ptr().cast(), self.len) },
            None => &[],
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        match &mut self.memory {
            // SAFETY: as above, and `self` is borrowed alone.
            Some(memory) => unsafe {
                std::slice::from_raw_parts_mut(memory.pointer.as_ptr().cast(), self.len)
            },
            None => &mut [],
        }
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            lock(&self.free).entry(memory.len).or_default().push(memory);
        }
    }
}
