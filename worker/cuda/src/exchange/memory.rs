//! Memory of a GPU that processes share: a file descriptor carries it, and it lives as long as anybody maps it.
//!
//! CUDA Driver API, "Virtual Memory Management". Not `cuIpc…`: where a process that had opened such memory was killed,
//! others have lost their contexts with it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUmemAllocationHandleType, CUmemLocation, CUmemLocationType};
use cudarc::driver::{CudaContext, DriverError};

/// The granularity of devices so far, for plans that are made without one.
pub(crate) const GRANULARITY: u64 = 2 << 20;
const FILE: CUmemAllocationHandleType = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

/// Memory that this process maps for one of its GPUs.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    // Given back in this order.
    _mapped: Mapped,
    range: Range,
    handle: Handle,
}

#[derive(Debug)]
struct Handle {
    handle: u64,
    context: Arc<CudaContext>,
}

/// Reserved addresses.
#[derive(Debug)]
struct Range {
    address: u64,
    size: usize,
    context: Arc<CudaContext>,
}

/// What is mapped there.
#[derive(Debug)]
struct Mapped {
    address: u64,
    size: usize,
    context: Arc<CudaContext>,
}

impl SharedMemory {
    /// At least `bytes` on the context's device, with whatever was there before.
    pub(crate) fn create(context: &Arc<CudaContext>, bytes: u64) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: all zeros is a value of this struct of numbers and a pointer that may be null.
        let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
        properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.requestedHandleTypes = FILE;
        properties.location = location(context);
        let minimum = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let (mut granularity, mut handle) = (0, 0);
        // SAFETY: the pointers lead to values that live through the calls.
        let size = unsafe {
            sys::cuMemGetAllocationGranularity(&raw mut granularity, &raw const properties, minimum)
                .result()?;
            let size = (bytes as usize).next_multiple_of(granularity.max(1));
            sys::cuMemCreate(&raw mut handle, size, &raw const properties, 0).result()?;
            size
        };
        let context = Arc::clone(context);
        Self::map(Handle { handle, context }, size)
    }

    /// Memory of another process, mapped for the context's device. It must have `size` bytes.
    pub(crate) fn import(
        context: &Arc<CudaContext>,
        file: BorrowedFd<'_>,
        size: u64,
    ) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let mut handle = 0;
        // The descriptor itself stands in the pointer.
        let file = file.as_raw_fd() as usize as *mut std::ffi::c_void;
        // SAFETY: the descriptor is open, and the pointer leads to a number.
        unsafe { sys::cuMemImportFromShareableHandle(&raw mut handle, file, FILE) }.result()?;
        let context = Arc::clone(context);
        Self::map(Handle { handle, context }, size as usize)
    }

    fn map(handle: Handle, size: usize) -> Result<Self, DriverError> {
        let context = &handle.context;
        let mut address = 0;
        // SAFETY: the pointer leads to a number; any address will do.
        unsafe { sys::cuMemAddressReserve(&raw mut address, size, 0, 0, 0) }.result()?;
        let range = Range {
            address,
            size,
            context: Arc::clone(context),
        };
        // SAFETY: the addresses were reserved above, and the handle is valid; a size beyond the memory's is refused.
        unsafe { sys::cuMemMap(address, size, 0, handle.handle, 0) }.result()?;
        let mapped = Mapped {
            address,
            size,
            context: Arc::clone(context),
        };
        let access = sys::CUmemAccessDesc {
            location: location(context),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range was mapped above, and one description is given.
        unsafe { sys::cuMemSetAccess(address, size, &raw const access, 1) }.result()?;
        Ok(Self {
            _mapped: mapped,
            range,
            handle,
        })
    }

    /// A descriptor that carries it to another process.
    pub(crate) fn export(&self) -> Result<OwnedFd, DriverError> {
        let mut file = -1i32;
        // SAFETY: the pointer leads to a descriptor, which is what this kind of handle writes.
        unsafe { sys::cuMemExportToShareableHandle((&raw mut file).cast(), self.handle.handle, FILE, 0) }
            .result()?;
        // SAFETY: the driver made the descriptor for the caller.
        Ok(unsafe { OwnedFd::from_raw_fd(file) })
    }

    /// Its bytes, a multiple of the granularity.
    pub(crate) fn size(&self) -> u64 {
        self.range.size as u64
    }

    /// Where the device sees it.
    pub(crate) fn address(&self) -> u64 {
        self.range.address
    }
}

fn location(context: &CudaContext) -> CUmemLocation {
    CUmemLocation {
        type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
        id: context.cu_device(),
    }
}

/// Give something back, where the device has ended its work on it, which owners wait for.
fn give_back(context: &CudaContext, call: impl FnOnce() -> sys::CUresult) {
    let bound = context.bind_to_thread();
    context.record_err(bound.and_then(|()| call().result()));
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, and unmapped once.
        give_back(&self.context, || unsafe {
            sys::cuMemUnmap(self.address, self.size)
        });
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: reserved in `map`, and given back once, behind what was mapped there.
        give_back(&self.context, || unsafe {
            sys::cuMemAddressFree(self.address, self.size)
        });
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created or imported above, and released once.
        give_back(&self.context, || unsafe { sys::cuMemRelease(self.handle) });
    }
}
