//! Which of NVIDIA's libraries are there.
//!
//! The bindings panic when a library is missing, so nothing calls them before it was seen here.

use cudarc::{driver, nvrtc};

/// Whether this program can load a driver at run time: one that is linked statically, without the system's loader, cannot.
#[must_use]
pub fn loads_drivers() -> bool {
    // SAFETY: reads a number that the kernel put there when the program started: where its loader is, 0 without one (getauxval(3)).
    unsafe { libc::getauxval(libc::AT_BASE) != 0 }
}

/// Why there is no CUDA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// This program cannot load libraries at all.
    #[error(
        "this program is linked statically and cannot load the NVIDIA driver: it was built for CPUs. Use the image tag that is \
         built for GPUs"
    )]
    Static,
    /// No driver on this machine, or none inside this container.
    #[error(
        "there is no NVIDIA driver: libcuda.so.1 was not found. Install the driver on the node, and let the container see \
         it (runtime class `nvidia`, or NVIDIA's container toolkit)"
    )]
    Driver,
    /// The driver is there, but does not start.
    #[error("the NVIDIA driver does not start: {0}. `nvidia-smi` on the node tells more")]
    Start(String),
    /// The driver is there, and waits for what else runs on the node.
    #[error(
        "the node's GPUs are not ready: {0}. Where NVSwitches connect them, `nvidia-fabricmanager` must run on the node"
    )]
    NotReady(String),
    /// No run-time compiler.
    #[error(
        "the kernels for this GPU are not built in and NVRTC is missing: libnvrtc was not found. Use the image tag that \
         carries it, or install the package nvidia-cuda-nvrtc"
    )]
    Compiler,
}

/// Proof that the driver was found and started.
#[derive(Debug, Clone, Copy)]
pub struct Driver(());

impl Driver {
    /// The latest version of CUDA that the driver knows, such as `13.0`.
    ///
    /// # Errors
    /// [`Absent::Start`].
    pub fn cuda_version(self) -> Result<String, Absent> {
        let mut version = 0;
        // SAFETY: the driver was found, and writes one number.
        let asked = unsafe { driver::sys::cuDriverGetVersion(&raw mut version) }.result();
        match asked {
            Ok(()) => Ok(format!("{}.{}", version / 1000, version % 1000 / 10)),
            Err(error) => Err(Absent::Start(describe(error))),
        }
    }
}

/// Proof that the run-time compiler was found.
#[derive(Debug, Clone, Copy)]
pub struct Compiler(());

/// Find and start the driver.
///
/// # Errors
/// [`Absent`], a sentence that says what to install.
pub fn driver() -> Result<Driver, Absent> {
    if !loads_drivers() {
        return Err(Absent::Static);
    }
    // SAFETY: loading a library runs its initialisers; NVIDIA's are made for it.
    if !unsafe { driver::sys::is_culib_present() } {
        return Err(Absent::Driver);
    }
    match driver::result::init() {
        Ok(()) => Ok(Driver(())),
        Err(error) if error.0 == driver::sys::CUresult::CUDA_ERROR_SYSTEM_NOT_READY => {
            Err(Absent::NotReady(describe(error)))
        }
        Err(error) => Err(Absent::Start(describe(error))),
    }
}

/// Find the run-time compiler.
///
/// # Errors
/// [`Absent::Compiler`].
pub fn compiler() -> Result<Compiler, Absent> {
    if !loads_drivers() {
        return Err(Absent::Static);
    }
    // SAFETY: as above.
    if unsafe { nvrtc::sys::is_culib_present() } {
        Ok(Compiler(()))
    } else {
        Err(Absent::Compiler)
    }
}

/// What the driver says about an error; its number where it says nothing.
pub(crate) fn describe(error: driver::DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{} ({:?})", text.to_string_lossy(), error.0),
        Err(_) => format!("{:?}", error.0),
    }
}
