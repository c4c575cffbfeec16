//! Memory from the operating system.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::error::{Code, Result, error};

/// Fresh memory gets this, so that a read before the first write shows: as a float it is a huge negative number, as a
/// bf16 too. Large mappings stay untouched, since filling them would make them resident.
const POISON: u8 = 0xfb;
const POISON_LIMIT: usize = 16 << 20;

/// An anonymous mapping or a reserved range of addresses; given back when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: u64,
    len: usize,
}

impl Mapping {
    /// At least `size` bytes of zeroes, or of poison.
    pub(super) fn new(size: usize, poison: bool) -> Result<Self> {
        let mapping = Self::map(size, libc::PROT_READ | libc::PROT_WRITE)?;
        if poison && size <= POISON_LIMIT {
            // SAFETY: the mapping is new, writable and ours alone.
            unsafe { ptr::write_bytes(mapping.base as *mut u8, POISON, size) };
        }
        Ok(mapping)
    }

    /// `size` bytes of addresses without memory.
    pub(super) fn reserve(size: usize) -> Result<Self> {
        Self::map(size, libc::PROT_NONE)
    }

    fn map(size: usize, protection: i32) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let len = size.max(1);
        // SAFETY: a new mapping at an address that the kernel chooses touches nobody's memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        Self::made(base, len)
    }

    fn made(base: *mut libc::c_void, len: usize) -> Result<Self> {
        if base == libc::MAP_FAILED {
            return Err(error(Code::OutOfMemory, format!("the host has no {len} bytes")));
        }
        Ok(Self {
            base: base as u64,
            len,
        })
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Put `size` bytes of a file at `offset` of this range.
    pub(super) fn attach(
        &self,
        offset: usize,
        size: usize,
        file: BorrowedFd<'_>,
        file_offset: i64,
    ) -> Result<()> {
        self.replace(
            offset,
            size,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            file_offset,
            libc::PROT_READ | libc::PROT_WRITE,
        )
    }

    /// Take the memory away, keep the addresses.
    pub(super) fn detach(&self, offset: usize, size: usize) -> Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.replace(offset, size, flags, -1, 0, libc::PROT_NONE)
    }

    fn replace(
        &self,
        offset: usize,
        size: usize,
        flags: i32,
        fd: i32,
        at: i64,
        protection: i32,
    ) -> Result<()> {
        if offset.checked_add(size).is_none_or(|end| end > self.len) {
            return Err(error(Code::InvalidValue, "the range leaves the reservation"));
        }
        let base = (self.base + offset as u64) as *mut libc::c_void;
        // SAFETY: the range lies inside this mapping, which belongs to nobody else; kernels that use it have ended,
        // since the caller holds the stream's order.
        let mapped = unsafe { libc::mmap(base, size, protection, flags | libc::MAP_FIXED, fd, at) };
        if mapped == libc::MAP_FAILED {
            return Err(error(
                Code::OutOfMemory,
                std::io::Error::last_os_error().to_string(),
            ));
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and with it goes the last way to reach it.
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.len) };
    }
}
