//! Memory that processes share.

use super::{In, Out, calls};
use crate::driver::error::fail;
use crate::driver::state::driver;
use crate::driver::vmm::GRANULARITY;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Location {
    kind: u32,
    id: i32,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
struct AllocationProperties {
    kind: u32,
    handle_types: u32,
    location: Location,
    win32: *const std::ffi::c_void,
    flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
struct AccessDescription {
    location: Location,
    flags: u32,
}

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: u32 = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const FILE_DESCRIPTOR: u32 = 1;

calls! {
    fn cuMemGetAllocationGranularity(granularity: Out<usize>, _properties: In<AllocationProperties>, _option: u32) {
        granularity.set(GRANULARITY as usize)
    }

    fn cuMemCreate(handle: Out<u64>, size: usize, properties: In<AllocationProperties>, _flags: u64) {
        let properties = properties.get(0)?;
        if properties.location.kind != ON_DEVICE {
            fail!(NotSupported, "memory is created on devices only");
        }
        handle.set(driver()?.create(size as u64, properties.location.id)?)
    }

    fn cuMemRelease(handle: u64) {
        driver()?.release(handle)
    }

    fn cuMemExportToShareableHandle(fd: Out<i32>, handle: u64, kind: u32, _flags: u64) {
        if kind != FILE_DESCRIPTOR {
            fail!(NotSupported, "only file descriptors carry memory");
        }
        fd.set(driver()?.export(handle)?)
    }

    // The descriptor itself stands in the pointer.
    fn cuMemImportFromShareableHandle(handle: Out<u64>, fd: usize, kind: u32) {
        if kind != FILE_DESCRIPTOR {
            fail!(NotSupported, "only file descriptors carry memory");
        }
        handle.set(driver()?.import(fd as i32)?)
    }

    fn cuMemAddressReserve(address: Out<u64>, size: usize, _alignment: usize, _wish: u64, _flags: u64) {
        address.set(driver()?.reserve(size as u64)?)
    }

    fn cuMemAddressFree(address: u64, size: usize) {
        driver()?.unreserve(address, size as u64)
    }

    fn cuMemMap(address: u64, size: usize, offset: usize, handle: u64, _flags: u64) {
        driver()?.map(address, size as u64, offset as u64, handle)
    }

    fn cuMemUnmap(address: u64, size: usize) {
        driver()?.unmap(address, size as u64)
    }

    fn cuMemSetAccess(address: u64, _size: usize, descriptions: In<AccessDescription>, count: usize) {
        let driver = driver()?;
        for index in 0..count {
            let description = descriptions.get(index)?;
            if description.location.kind != ON_DEVICE {
                fail!(NotSupported, "access is given to devices only");
            }
            driver.set_access(address, description.location.id, description.flags)?;
        }
        Ok(())
    }
}
