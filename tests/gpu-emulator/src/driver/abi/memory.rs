//! Allocation, copies and fills.

use std::ffi::c_void;
use std::sync::Arc;

use super::{Out, calls};
use crate::driver::error::{Result, fail};
use crate::driver::mapping::Mapping;
use crate::driver::memory::{Allocation, Place};
use crate::driver::state::{Driver, driver};
use crate::driver::work::{Source, Work};

/// Allocate on the current device.
fn allocate(size: usize) -> Result<u64> {
    let driver = driver()?;
    let (_, device) = driver.current()?;
    if size == 0 {
        fail!(InvalidValue, "0 bytes");
    }
    driver.count_allocation(size as u64)?;
    driver
        .tables()
        .memory
        .allocate(device, size as u64, driver.config.memory)
}

fn pinned(size: usize) -> Result<*mut c_void> {
    let driver = driver()?;
    driver.current()?;
    let mapping = Mapping::new(size, false)?;
    let base = mapping.base();
    let allocation = Allocation {
        size: size as u64,
        place: Place::Host,
        writable: true,
        mapping: Some(Arc::new(mapping)),
    };
    driver.tables().memory.insert(base, allocation);
    Ok(base as *mut c_void)
}

/// How a copy treats the memory of the host that the driver does not know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Host {
    /// Neither side is the host's.
    None,
    From,
    To,
}

impl Driver {
    fn known(&self, address: u64) -> bool {
        self.tables().memory.find(address).is_some()
    }

    fn copy_async(&self, to: u64, from: u64, size: usize, stream: u64, host: Host) -> Result<()> {
        let stream = self.stream(stream)?;
        if size == 0 {
            return Ok(());
        }
        let size = size as u64;
        if host != Host::To {
            self.tables().memory.span(to, size)?;
        }
        if host != Host::From {
            self.tables().memory.span(from, size)?;
        }
        let from = if host == Host::From && !self.known(from) && stream.capture().is_none() {
            // SAFETY: by the C interface `size` bytes at `from` are readable.
            let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, size as usize) };
            Source::Bytes(bytes.into())
        } else {
            Source::Address(from)
        };
        self.enqueue(&stream, Work::Copy { to, from, size })?;
        // A copy to pageable memory is done when the call returns.
        if host == Host::To && !self.known(to) && stream.capture().is_none() {
            self.drain(&stream, u64::MAX)?;
        }
        Ok(())
    }

    /// A copy that waits for everything before it on the default stream.
    fn copy_now(&self, to: u64, from: u64, size: usize, host: Host) -> Result<()> {
        let (context, _) = self.current()?;
        self.synchronise_all(context)?;
        self.copy_async(to, from, size, 0, host)?;
        self.synchronise_all(context)
    }

    /// Which side of a copy is the host's, where the caller does not say.
    fn sides(&self, to: u64, from: u64) -> Host {
        match (self.known(to), self.known(from)) {
            (true, false) => Host::From,
            (false, _) => Host::To,
            (true, true) => Host::None,
        }
    }

    fn fill_async(&self, to: u64, value: u32, width: u64, count: usize, stream: u64) -> Result<()> {
        let stream = self.stream(stream)?;
        let count = count as u64;
        if count == 0 {
            return Ok(());
        }
        self.tables().memory.span(to, width * count)?;
        self.enqueue(
            &stream,
            Work::Fill {
                to,
                value,
                width,
                count,
            },
        )
    }
}

calls! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let driver = driver()?;
        let (_, device) = driver.current()?;
        let used = driver.tables().memory.used(device);
        free.set(driver.config.memory.saturating_sub(used) as usize)?;
        total.set(driver.config.memory as usize)
    }

    fn cuMemAlloc_v2(address: Out<u64>, size: usize) {
        address.set(allocate(size)?)
    }

    // The memory is there at once, which is one of the moments that the interface allows.
    fn cuMemAllocAsync(address: Out<u64>, size: usize, stream: u64) {
        let driver = driver()?;
        driver.not_capturing(&*driver.stream(stream)?, "an allocation")?;
        address.set(allocate(size)?)
    }

    fn cuMemFree_v2(address: u64) {
        let driver = driver()?;
        let (context, _) = driver.current()?;
        driver.synchronise_all(context)?;
        driver.tables().memory.free(address).map(|_| ())
    }

    fn cuMemFreeAsync(address: u64, stream: u64) {
        let driver = driver()?;
        let stream = driver.stream(stream)?;
        driver.not_capturing(&stream, "giving memory back")?;
        driver.tables().memory.span(address, 0)?;
        driver.enqueue(&stream, Work::Free(address))
    }

    fn cuMemHostAlloc(address: Out<*mut c_void>, size: usize, _flags: u32) {
        address.set(pinned(size)?)
    }

    fn cuMemAllocHost_v2(address: Out<*mut c_void>, size: usize) {
        address.set(pinned(size)?)
    }

    fn cuMemFreeHost(address: u64) {
        driver()?.tables().memory.free(address).map(|_| ())
    }

    fn cuMemHostRegister_v2(address: u64, size: usize, _flags: u32) {
        let driver = driver()?;
        driver.current()?;
        if driver.known(address) {
            fail!(InvalidValue, "{address:#x} is registered or allocated already");
        }
        let allocation = Allocation { size: size as u64, place: Place::Host, writable: true, mapping: None };
        driver.tables().memory.insert(address, allocation);
        Ok(())
    }

    fn cuMemHostUnregister(address: u64) {
        driver()?.tables().memory.free(address).map(|_| ())
    }

    fn cuMemHostGetDevicePointer_v2(device: Out<u64>, host: u64, _flags: u32) {
        driver()?.tables().memory.span(host, 0)?;
        device.set(host)
    }

    fn cuMemcpyHtoD_v2(to: u64, from: u64, size: usize) {
        driver()?.copy_now(to, from, size, Host::From)
    }

    fn cuMemcpyDtoH_v2(to: u64, from: u64, size: usize) {
        driver()?.copy_now(to, from, size, Host::To)
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, size: usize) {
        driver()?.copy_now(to, from, size, Host::None)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, size: usize, stream: u64) {
        driver()?.copy_async(to, from, size, stream, Host::From)
    }

    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, size: usize, stream: u64) {
        driver()?.copy_async(to, from, size, stream, Host::To)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, size: usize, stream: u64) {
        driver()?.copy_async(to, from, size, stream, Host::None)
    }

    fn cuMemcpyAsync(to: u64, from: u64, size: usize, stream: u64) {
        let driver = driver()?;
        driver.copy_async(to, from, size, stream, driver.sides(to, from))
    }

    fn cuMemcpyPeerAsync(to: u64, _to_context: u64, from: u64, _from_context: u64, size: usize, stream: u64) {
        driver()?.copy_async(to, from, size, stream, Host::None)
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        let driver = driver()?;
        driver.fill_async(to, u32::from(value), 1, count, 0)?;
        driver.synchronise(&driver.stream(0)?)
    }

    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) {
        driver()?.fill_async(to, u32::from(value), 1, count, stream)
    }

    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: u64) {
        driver()?.fill_async(to, value, 4, count, stream)
    }
}
