//! Reading and writing memory that blocks, host threads and other processes share.
//!
//! Kernels may race, on purpose or by mistake, so each access is a relaxed atomic of its size: the same machine
//! instruction as a plain one, without undefined behaviour. Regions are whole mappings, so every pointer made here is
//! inside one (see [`super::memory::Region::new`]).

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Read `bytes` (1, 2, 4 or 8) at `address`, zero-extended.
///
/// # Safety
/// The memory must be mapped and the address a multiple of `bytes`.
#[inline(always)]
pub(super) unsafe fn read(address: u64, bytes: usize) -> u64 {
    // SAFETY: the caller vouches for mapping and alignment.
    unsafe {
        match bytes {
            1 => u64::from(AtomicU8::from_ptr(address as *mut u8).load(Relaxed)),
            2 => u64::from(AtomicU16::from_ptr(address as *mut u16).load(Relaxed)),
            4 => u64::from(AtomicU32::from_ptr(address as *mut u32).load(Relaxed)),
            _ => AtomicU64::from_ptr(address as *mut u64).load(Relaxed),
        }
    }
}

/// Write the lowest `bytes` (1, 2, 4 or 8) of `value` at `address`.
///
/// # Safety
/// As for [`read`], and the memory must be writable.
#[inline(always)]
pub(super) unsafe fn write(address: u64, bytes: usize, value: u64) {
    // SAFETY: the caller vouches for mapping, alignment and permission.
    unsafe {
        match bytes {
            1 => AtomicU8::from_ptr(address as *mut u8).store(value as u8, Relaxed),
            2 => AtomicU16::from_ptr(address as *mut u16).store(value as u16, Relaxed),
            4 => AtomicU32::from_ptr(address as *mut u32).store(value as u32, Relaxed),
            _ => AtomicU64::from_ptr(address as *mut u64).store(value, Relaxed),
        }
    }
}

/// Replace the value of `bytes` (4 or 8) at `address` by `next` of it, and return what it was.
///
/// # Safety
/// As for [`write`].
pub(super) unsafe fn update(address: u64, bytes: usize, next: impl Fn(u64) -> u64) -> u64 {
    use std::sync::atomic::Ordering::SeqCst;
    // SAFETY: the caller vouches for mapping, alignment and permission.
    unsafe {
        if bytes == 4 {
            let word = AtomicU32::from_ptr(address as *mut u32);
            let old = word.fetch_update(SeqCst, SeqCst, |old| Some(next(u64::from(old)) as u32));
            u64::from(old.unwrap_or_else(|old| old))
        } else {
            let word = AtomicU64::from_ptr(address as *mut u64);
            word.fetch_update(SeqCst, SeqCst, |old| Some(next(old)))
                .unwrap_or_else(|old| old)
        }
    }
}
