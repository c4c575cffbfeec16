//! Memory that processes share by file descriptor.
#![cfg(not(target_feature = "crt-static"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use cudarc::driver::{CudaContext, sys};
use llamero_gpu_emulator::emulated;

const SIZE: usize = 2 << 20;
/// Tells the second process where the first one's descriptor is.
const PEER: &str = "LLAMERO_GPU_EMULATOR_TEST_PEER";

/// Map a handle, writable for device 0.
fn map(handle: u64) -> u64 {
    let mut address = 0;
    let access = sys::CUmemAccessDesc {
        location: location(),
        flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    // SAFETY: the pointers lead to values that live through the calls.
    unsafe {
        sys::cuMemAddressReserve(&mut address, SIZE, 0, 0, 0)
            .result()
            .unwrap();
        sys::cuMemMap(address, SIZE, 0, handle, 0).result().unwrap();
        sys::cuMemSetAccess(address, SIZE, &access, 1).result().unwrap();
    }
    address
}

fn location() -> sys::CUmemLocation {
    // SAFETY: all zeros is a value of this struct of numbers.
    let mut location: sys::CUmemLocation = unsafe { std::mem::zeroed() };
    location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    location
}

fn create(size: usize) -> Result<u64, cudarc::driver::DriverError> {
    // SAFETY: all zeros is a value of this struct of numbers and a pointer that may be null.
    let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.location = location();
    let mut handle = 0;
    // SAFETY: the pointers lead to values that live through the call.
    unsafe { sys::cuMemCreate(&mut handle, size, &properties, 0) }
        .result()
        .map(|()| handle)
}

const POSIX: sys::CUmemAllocationHandleType =
    sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

/// The second process: add one to each byte of what the first shares.
fn second(path: &str) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut handle = 0;
    // SAFETY: the descriptor is open; it stands in the pointer.
    unsafe { sys::cuMemImportFromShareableHandle(&mut handle, file.as_raw_fd() as usize as *mut _, POSIX) }
        .result()
        .unwrap();
    let address = map(handle);
    let mut bytes = vec![0u8; SIZE];
    // SAFETY: the mapping has as many bytes.
    unsafe {
        cudarc::driver::result::memcpy_dtoh_sync(&mut bytes, address).unwrap();
        bytes.iter_mut().for_each(|byte| *byte += 1);
        cudarc::driver::result::memcpy_htod_sync(address, &bytes).unwrap();
    }
}

emulated! {
    fn a_file_descriptor_carries_memory_to_another_process() on ["memory=16MiB"], {
        let context = CudaContext::new(0).unwrap();
        if let Ok(path) = std::env::var(PEER) {
            return second(&path);
        }
        let handle = create(SIZE).unwrap();
        assert_eq!(context.mem_get_info().unwrap().0, (16 << 20) - SIZE);
        let address = map(handle);
        let mut fd = -1i32;
        // SAFETY: the pointers lead to values that live through the calls, the mapping has as many bytes.
        let file = unsafe {
            cudarc::driver::result::memcpy_htod_sync(address, &vec![41u8; SIZE]).unwrap();
            sys::cuMemExportToShareableHandle((&raw mut fd).cast(), handle, POSIX, 0).result().unwrap();
            OwnedFd::from_raw_fd(fd)
        };
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let test = std::thread::current().name().unwrap().to_owned();
        let status = Command::new(std::env::current_exe().unwrap())
            .args([&test, "--exact"])
            .env(PEER, path)
            .status()
            .unwrap();
        assert!(status.success());
        let mut bytes = vec![0u8; SIZE];
        // SAFETY: as above.
        unsafe {
            cudarc::driver::result::memcpy_dtoh_sync(&mut bytes, address).unwrap();
            sys::cuMemUnmap(address, SIZE).result().unwrap();
            sys::cuMemAddressFree(address, SIZE).result().unwrap();
            sys::cuMemRelease(handle).result().unwrap();
        }
        assert!(bytes.iter().all(|byte| *byte == 42));
        assert_eq!(context.mem_get_info().unwrap().0, 16 << 20);
    }

    fn sizes_are_multiples_of_the_granularity_and_fit() on ["memory=4MiB"], {
        let _context = CudaContext::new(0).unwrap();
        assert_eq!(create(4096).unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        create(4 << 20).unwrap();
        assert_eq!(create(2 << 20).unwrap_err().0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
}
