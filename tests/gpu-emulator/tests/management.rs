//! The management library, as a preflight asks it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::c_char;

use libloading::{Library, Symbol};
use llamero_gpu_emulator::emulated;

struct Management(Library);

impl Management {
    fn open() -> Self {
        // SAFETY: the emulator has no initialisers.
        Self(unsafe { Library::new("libnvidia-ml.so.1") }.unwrap())
    }

    /// Call a function of a device that gives one number.
    fn number<T: Default>(&self, name: &str, device: u64) -> T {
        let mut value = T::default();
        // SAFETY: the functions that are asked for take a device and a pointer to a number of this size.
        let code = unsafe {
            let function: Symbol<'_, extern "C" fn(u64, *mut T) -> u32> =
                self.0.get(name.as_bytes()).unwrap();
            function(device, &mut value)
        };
        assert_eq!(code, 0, "{name}");
        value
    }

    fn uncorrected_errors(&self, device: u64) -> u64 {
        let mut value = 0;
        // SAFETY: the function's signature.
        let code = unsafe {
            let function: Symbol<'_, extern "C" fn(u64, u32, u32, *mut u64) -> u32> =
                self.0.get(b"nvmlDeviceGetTotalEccErrors").unwrap();
            function(device, 1, 0, &mut value)
        };
        assert_eq!(code, 0);
        value
    }

    fn by_uuid(&self, uuid: *const c_char) -> Result<u64, u32> {
        let mut device = 0;
        // SAFETY: the function's signature; the text ends with NUL.
        let code = unsafe {
            let function: Symbol<'_, extern "C" fn(*const c_char, *mut u64) -> u32> =
                self.0.get(b"nvmlDeviceGetHandleByUUID").unwrap();
            function(uuid, &mut device)
        };
        if code == 0 { Ok(device) } else { Err(code) }
    }
}

emulated! {
    fn devices_tell_their_memory_and_their_errors() on ["devices=2,memory=24GiB,fault=ecc@{folder}/broken"], {
        let management = Management::open();
        let second = management.by_uuid(c"GPU-6c6c616d-6572-6f2d-656d-756c61746501".as_ptr()).unwrap();
        assert_eq!(second, 2);
        assert_eq!(management.by_uuid(c"GPU-00".as_ptr()), Err(6));
        let memory: [u64; 3] = management.number("nvmlDeviceGetMemoryInfo", second);
        assert_eq!(memory, [24 << 30, 24 << 30, 0]);
        assert_eq!(management.number::<u64>("nvmlDeviceGetCurrentClocksThrottleReasons", second), 0);
        assert_eq!(management.uncorrected_errors(second), 0);
        let machine = std::env::var("LLAMERO_GPU_EMULATOR").unwrap();
        std::fs::write(machine.split_once('@').unwrap().1, "").unwrap();
        assert_eq!(management.uncorrected_errors(second), 1);
    }
}
