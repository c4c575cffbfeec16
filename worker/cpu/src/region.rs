//! One contiguous piece of memory for a rank's weights: anonymous, or a file in memory that outlives the process.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap, munmap};

/// A mapping of fixed length, page aligned, readable and writable.
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone and has no thread affinity.
unsafe impl Send for Region {}
// SAFETY: shared access only reads.
unsafe impl Sync for Region {}

impl Region {
    /// Fresh zeroed memory.
    pub(crate) fn anonymous(len: usize) -> std::io::Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        Self::adopt(start.cast(), len)
    }

    /// The first `len` bytes of `file`, which is made that long. What it holds already stays; new bytes are zero.
    pub(crate) fn of_file(file: &OwnedFd, len: usize) -> std::io::Result<Self> {
        let size = u64::try_from(len).map_err(std::io::Error::other)?;
        if u64::try_from(rustix::fs::fstat(file)?.st_size).ok() != Some(size) {
            rustix::fs::ftruncate(file, size)?;
        }
        // SAFETY: a new mapping at an address of the kernel's choice. The file is an anonymous memory file that only
        // the supervisor and the rank processes of this pod hold; only the rank that it belongs to changes its length, when no
        // slice of another mapping is alive; and it is written by other means only
        // while the weights are loaded, when no slice of the mapping is alive. A peer that was stopped in the middle of
        // such a write and goes on later writes the bytes that are there.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        }?;
        Self::adopt(start.cast(), len)
    }

    fn adopt(start: *mut u8, len: usize) -> std::io::Result<Self> {
        let start = NonNull::new(start).ok_or_else(|| std::io::Error::other("mmap returned null"))?;
        Ok(Self { start, len })
    }

    /// Change the length. What both lengths have stays; new bytes are zero. `file` is what it is mapped from, if it is a file.
    ///
    /// # Errors
    /// What the kernel says; the region is as it was then.
    pub(crate) fn resize(&mut self, file: Option<&OwnedFd>, len: usize) -> std::io::Result<()> {
        if let Some(file) = file {
            *self = Self::of_file(file, len)?.prefer_large_pages();
            return Ok(());
        }
        // SAFETY: the mapping is our own and anonymous, and the exclusive borrow says that nobody refers to it.
        let start = unsafe { mremap(self.start.as_ptr().cast(), self.len, len, MremapFlags::MAYMOVE) }?;
        self.start =
            NonNull::new(start.cast()).ok_or_else(|| std::io::Error::other("mremap returned null"))?;
        self.len = len;
        Ok(())
    }

    /// Ask for large pages: for what is read from end to end again and again, where they save address look-ups. Not for
    /// what is touched piece by piece, where the kernel would clear, or first assemble, a large page for every small piece.
    pub(crate) fn prefer_large_pages(self) -> Self {
        // SAFETY: the range is our own mapping, and the advice changes no content. If it is refused all works the same.
        let _ = unsafe { madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxHugepage) };
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long, initialised by the kernel, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The region as bytes that other processes may change at any time.
    pub(crate) fn atomic_bytes(&mut self) -> &[AtomicU8] {
        // SAFETY: as above; an atomic byte has the layout of a byte, and the exclusive borrow keeps plain slices away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len) }
    }

    /// The first 8 bytes of the region, which other processes may change at any time.
    ///
    /// # Panics
    /// When the region is shorter.
    pub(crate) fn atomic_word(&mut self) -> &AtomicU64 {
        assert!(self.len >= size_of::<AtomicU64>());
        // SAFETY: inside the mapping and, as that is page aligned, aligned; the rest as above.
        unsafe { self.start.cast().as_ref() }
    }

    /// A word of a region of which nothing is ever seen but through this and [`Self::shared_data`], at byte `at`. Other
    /// processes may change it at any time.
    ///
    /// # Panics
    /// When it is not inside the region or not aligned.
    pub(crate) fn shared_word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(align_of::<AtomicU32>()) && at + size_of::<AtomicU32>() <= self.len);
        // SAFETY: inside the mapping and aligned, as that is page aligned; initialised by the kernel, and valid for any bytes.
        // The owner keeps plain slices away, so that all access is atomic.
        unsafe { self.start.add(at).cast().as_ref() }
    }

    /// So many values of a region of which nothing is ever seen but through this and [`Self::shared_word`], from byte `at` on.
    ///
    /// # Panics
    /// When they are not inside the region or not aligned.
    pub(crate) fn shared_data(&self, at: usize, count: usize) -> &[AtomicU64] {
        let bytes = count * size_of::<AtomicU64>();
        assert!(at.is_multiple_of(align_of::<AtomicU64>()) && at + bytes <= self.len);
        // SAFETY: as for a word.
        unsafe { std::slice::from_raw_parts(self.start.add(at).cast().as_ptr(), count) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow of `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no slice of it outlives `self`. A failure would leave the memory mapped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
