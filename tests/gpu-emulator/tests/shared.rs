//! Memory that processes share by file descriptor.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

mod common;

use common::{Gpu, launch};
use cudarc::driver::{CudaContext, PushKernelArg, sys};
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

/// Where device 0 sees a word of the host.
fn registered(word: &mut u32) -> u64 {
    let mut address = 0;
    let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP;
    let at = (&raw mut *word).cast();
    // SAFETY: the word lives until the test's process ends.
    unsafe {
        sys::cuMemHostRegister_v2(at, 4, flags).result().unwrap();
        sys::cuMemHostGetDevicePointer_v2(&raw mut address, at, 0)
            .result()
            .unwrap();
    }
    address
}

/// The second process: add one to each byte of what the first shares.
fn second(path: &str) {
    let address = shared_by_peer(path);
    let mut bytes = vec![0u8; SIZE];
    // SAFETY: the mapping has as many bytes.
    unsafe {
        cudarc::driver::result::memcpy_dtoh_sync(&mut bytes, address).unwrap();
        bytes.iter_mut().for_each(|byte| *byte += 1);
        cudarc::driver::result::memcpy_htod_sync(address, &bytes).unwrap();
    }
}

/// Waits for the flag behind the words, or for a word of the host, which it sees by another address; then takes the words.
const WAITS: &str = r#"extern "C" __global__ void k(const unsigned* words, const volatile unsigned* stop, unsigned* out) {
    unsigned flag;
    do {
        asm volatile("nanosleep.u32 %0;" :: "r"(1000));
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(flag) : "l"(words + 64) : "memory");
    } while (flag < 32 && !*stop);
    out[threadIdx.x] = words[threadIdx.x] + flag;
}"#;
/// Writes the words, then adds one to the flag for each.
const WRITES: &str = r#"extern "C" __global__ void k(unsigned* words) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" :: "l"(words + threadIdx.x), "r"(100 * threadIdx.x) : "memory");
    asm volatile("membar.sys;" ::: "memory");
    asm volatile("red.release.sys.global.add.u32 [%0], %1;" :: "l"(words + 64), "r"(1) : "memory");
}"#;

/// Export a handle, and start this test again as a second process that finds the descriptor.
fn start_peer(handle: u64) -> std::process::Child {
    let mut fd = -1i32;
    // SAFETY: the pointer leads to a descriptor; the driver made it for the caller.
    let file = unsafe {
        sys::cuMemExportToShareableHandle((&raw mut fd).cast(), handle, POSIX, 0)
            .result()
            .unwrap();
        OwnedFd::from_raw_fd(fd)
    };
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    // Open as long as this process lives.
    std::mem::forget(file);
    let test = std::thread::current().name().unwrap().to_owned();
    Command::new(std::env::current_exe().unwrap())
        .args([&test, "--exact"])
        .env(PEER, path)
        .spawn()
        .unwrap()
}

/// What the first process shares, mapped for device 0.
fn shared_by_peer(path: &str) -> u64 {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut handle = 0;
    // SAFETY: the descriptor is open; it stands in the pointer.
    unsafe { sys::cuMemImportFromShareableHandle(&mut handle, file.as_raw_fd() as usize as *mut _, POSIX) }
        .result()
        .unwrap();
    map(handle)
}

emulated! {
    fn a_spinning_kernel_sees_what_another_process_writes() on ["memory=16MiB", "order=reverse", "order=seed:2"], {
        if let Ok(path) = std::env::var(PEER) {
            let gpu = Gpu::new(WRITES, "k");
            let words = shared_by_peer(&path);
            launch(&gpu, 1, 32, 0, |args| { args.arg(&words); }).unwrap();
            return gpu.stream.synchronize().unwrap();
        }
        let gpu = Gpu::new(WAITS, "k");
        let words = { let handle = create(SIZE).unwrap(); let words = map(handle);
            // SAFETY: the mapping has as many bytes.
            unsafe { cudarc::driver::result::memset_d8_sync(words, 0, SIZE) }.unwrap();
            (handle, words) };
        let mut stop = 0u32;
        let (stop_address, mut out) = (registered(&mut stop), gpu.stream.alloc_zeros::<u32>(32).unwrap());
        let mut peer = start_peer(words.0);
        launch(&gpu, 1, 32, 0, |args| { args.arg(&words.1).arg(&stop_address).arg(&mut out); }).unwrap();
        assert!(peer.wait().unwrap().success());
        assert!(gpu.stream.clone_dtoh(&out).unwrap().into_iter().eq((0..32).map(|i| 100 * i + 32)));
    }

    fn a_spinning_kernel_sees_what_the_host_writes() on ["memory=16MiB"], {
        let gpu = Gpu::new(WAITS, "k");
        let words = gpu.stream.alloc_zeros::<u32>(65).unwrap();
        let mut out = gpu.stream.alloc_zeros::<u32>(32).unwrap();
        let mut stop = 0u32;
        let address = registered(&mut stop);
        // SAFETY: the word lives through the scope, and is changed as a whole.
        let word = unsafe { std::sync::atomic::AtomicU32::from_ptr(&raw mut stop) };
        std::thread::scope(|scope| {
            // The launch lasts until the word is there, whichever comes first.
            scope.spawn(|| word.store(1, std::sync::atomic::Ordering::Release));
            launch(&gpu, 1, 32, 0, |args| { args.arg(&words).arg(&address).arg(&mut out); }).unwrap();
        });
        assert!(gpu.stream.clone_dtoh(&out).unwrap().into_iter().all(|word| word == 0));
    }

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
