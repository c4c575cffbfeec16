//! CUDA C++ to PTX and machine code, kept by content hash.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts, result, sys};
use sha2::{Digest, Sha256};

use crate::device::Device;
use crate::probe::{Absent, compiler, describe};
use crate::source::{Source, short};

/// Kernels cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No compiler, and nothing kept.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// The compiler refuses: a mistake in a kernel.
    #[error("NVRTC refuses {file:?} for {arch}: {reason}")]
    Compile {
        /// The kernels' file.
        file: Source,
        /// The target.
        arch: String,
        /// The compiler's words.
        reason: String,
    },
    /// The driver refuses the module, or has no such kernel.
    #[error(
        "the NVIDIA driver refuses {what}: {reason}. A driver older than the compiler does not know its PTX: update it"
    )]
    Load {
        /// The file or the kernel.
        what: String,
        /// The driver's words.
        reason: String,
    },
    /// The folder of kept kernels.
    #[error("{path}: {reason}")]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: std::io::Error,
    },
}

/// Modules on one device. Loads a file when its first kernel is asked for.
#[derive(Debug)]
pub struct Modules {
    device: Device,
    /// PTX that was made before, one file for each hash; none: nothing is kept.
    folder: Option<PathBuf>,
    loaded: HashMap<Source, Arc<CudaModule>>,
}

impl Modules {
    /// No module yet.
    #[must_use]
    pub fn new(device: Device, folder: Option<PathBuf>) -> Self {
        Self {
            device,
            folder,
            loaded: HashMap::new(),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Which code is loaded, in few letters: machine code that is kept by its bytes; what is compiled here, by the compiler or the driver, by its text and
    /// `driver`, a version. Ranks whose code differs need not compute the same bits.
    ///
    /// # Errors
    /// [`KernelError::Keep`].
    pub fn digest(&self, driver: &str) -> Result<String, KernelError> {
        let (folder, capability) = (self.folder.as_deref(), self.device.capability);
        let mut hash = Sha256::new();
        let mut is_made_here = false;
        for source in Source::ALL
            .into_iter()
            .filter(|source| *source != Source::Measure)
        {
            match kept_cubin(source, capability, folder)? {
                Some(code) => hash.update(code),
                None => {
                    hash.update(source.text());
                    is_made_here = true;
                }
            }
        }
        if is_made_here {
            hash.update(driver);
        }
        Ok(short(hash))
    }

    /// A kernel by its name.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn kernel(&mut self, source: Source, name: &str) -> Result<CudaFunction, KernelError> {
        let module = match self.loaded.get(&source) {
            Some(module) => module.clone(),
            None => {
                let module = self.load(source)?;
                self.loaded.insert(source, module.clone());
                module
            }
        };
        module.load_function(name).map_err(|error| refused(name, error))
    }

    /// Machine code where it is kept, else PTX, which the driver turns into machine code. A driver that is older than the
    /// compiler does not know its PTX, but machine code of its GPU.
    fn load(&self, source: Source) -> Result<Arc<CudaModule>, KernelError> {
        let (folder, capability) = (self.folder.as_deref(), self.device.capability);
        let load = |image| self.device.context.load_module(image);
        let refused = |error| refused(&format!("{source:?}"), error);
        if let Some(code) = kept_cubin(source, capability, folder)? {
            match load(Ptx::from_binary(code)) {
                Err(error) if is_for_another(error) => {
                    tracing::warn!(?source, "the kept machine code is not for this GPU: PTX is taken");
                }
                loaded => return loaded.map_err(refused),
            }
        }
        match load(Ptx::from_src(self.text(source)?)) {
            Err(error) if error.0 == CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
                // Not kept: what is kept is what all ranks of the folder have had from the beginning.
                load(Ptx::from_binary(cubin(source, capability, None)?)).map_err(refused)
            }
            loaded => loaded.map_err(refused),
        }
    }

    /// PTX for this very device, else, where there is no compiler, what was kept for all of its kind.
    fn text(&self, source: Source) -> Result<String, KernelError> {
        let (folder, capability) = (self.folder.as_deref(), self.device.capability);
        match ptx(source, &arch(capability), folder) {
            Err(KernelError::Absent(absent)) => match kept_portable(source, capability, folder)? {
                Some(text) => Ok(text),
                None => Err(absent.into()),
            },
            made => made,
        }
    }
}

/// Whether the driver says that an image holds nothing for its device.
fn is_for_another(error: DriverError) -> bool {
    matches!(
        error.0,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_INVALID_IMAGE
    )
}

/// GPUs whose machine code is made beforehand: A100; L4 and L40S; H100 and H200; B200.
pub const CAPABILITIES: [(i32, i32); 4] = [(8, 0), (8, 9), (9, 0), (10, 0)];
/// Targets whose PTX every later GPU takes, the latest first.
const PORTABLE: [((i32, i32), &str); 2] = [((9, 0), "compute_90"), ((8, 0), "compute_80")];

/// Fill a folder with everything that a machine without a compiler needs: machine code of all kernels for known GPUs, and
/// PTX that drivers as new as the compiler turn into machine code of others. Returns the files.
///
/// # Errors
/// The compiler's; the folder cannot be made.
pub fn fill(folder: &Path) -> Result<Vec<PathBuf>, KernelError> {
    std::fs::create_dir_all(folder).map_err(|reason| keep_error(folder, reason))?;
    let mut files = Vec::new();
    for source in Source::ALL {
        for capability in CAPABILITIES {
            cubin(source, capability, Some(folder))?;
            files.push(cubin_path(source, capability, folder));
        }
        for (_, target) in PORTABLE {
            ptx(source, target, Some(folder))?;
            files.push(ptx_path(&source.text(), target, folder));
        }
    }
    Ok(files)
}

fn kept_portable(
    source: Source,
    capability: (i32, i32),
    folder: Option<&Path>,
) -> Result<Option<String>, KernelError> {
    let fitting = PORTABLE.iter().find(|(least, _)| *least <= capability);
    let (Some((_, target)), Some(folder)) = (fitting, folder) else {
        return Ok(None);
    };
    let kept = read(&ptx_path(&source.text(), target, folder))?;
    Ok(kept.map(|text| String::from_utf8_lossy(&text).into_owned()))
}

fn refused(what: &str, error: DriverError) -> KernelError {
    KernelError::Load {
        what: what.to_owned(),
        reason: describe(error),
    }
}

/// The target for a device: its own architecture with all features where it has such, else its family's.
#[must_use]
pub fn arch((major, minor): (i32, i32)) -> String {
    let exact = if (major, minor) >= (9, 0) { "a" } else { "" };
    format!("compute_{major}{minor}{exact}")
}

/// PTX of a file for a target, from the folder or from the compiler.
///
/// # Errors
/// All but [`KernelError::Load`].
pub fn ptx(source: Source, arch: &str, folder: Option<&Path>) -> Result<String, KernelError> {
    let text = source.text();
    let Some(folder) = folder else {
        return compile(source, &text, arch);
    };
    let path = ptx_path(&text, arch, folder);
    if let Some(kept) = read(&path)? {
        return Ok(String::from_utf8_lossy(&kept).into_owned());
    }
    let ptx = compile(source, &text, arch)?;
    keep(&path, ptx.as_bytes())?;
    Ok(ptx)
}

/// Machine code of a file for a GPU, from the folder or from the compiler.
///
/// # Errors
/// All but [`KernelError::Load`].
pub fn cubin(source: Source, capability: (i32, i32), folder: Option<&Path>) -> Result<Vec<u8>, KernelError> {
    if let Some(kept) = kept_cubin(source, capability, folder)? {
        return Ok(kept);
    }
    let code = compile_cubin(source, &real_arch(capability))?;
    if let Some(folder) = folder {
        keep(&cubin_path(source, capability, folder), &code)?;
    }
    Ok(code)
}

fn ptx_path(text: &str, arch: &str, folder: &Path) -> PathBuf {
    folder.join(format!("{}.ptx", hash(text, arch)))
}

fn real_arch(capability: (i32, i32)) -> String {
    arch(capability).replace("compute", "sm")
}

fn cubin_path(source: Source, capability: (i32, i32), folder: &Path) -> PathBuf {
    folder.join(format!("{}.cubin", hash(&source.text(), &real_arch(capability))))
}

fn kept_cubin(
    source: Source,
    capability: (i32, i32),
    folder: Option<&Path>,
) -> Result<Option<Vec<u8>>, KernelError> {
    match folder {
        Some(folder) => read(&cubin_path(source, capability, folder)),
        None => Ok(None),
    }
}

fn keep_error(path: &Path, reason: std::io::Error) -> KernelError {
    KernelError::Keep {
        path: path.to_owned(),
        reason,
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, KernelError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(keep_error(path, error)),
    }
}

/// Keep what was compiled. A folder that may only be read, such as that of an image, is no reason not to go on.
fn keep(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    match write(path, bytes) {
        Err(KernelError::Keep { path, reason }) if is_read_only(&reason) => {
            tracing::warn!(path = %path.display(), %reason, "a compiled kernel cannot be kept: it is compiled at every start");
            Ok(())
        }
        written => written,
    }
}

fn is_read_only(reason: &std::io::Error) -> bool {
    matches!(
        reason.kind(),
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied
    )
}

/// A reader sees nothing or all of it.
fn write(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    let keep = |reason| keep_error(path, reason);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(keep)?;
    file.write_all(bytes).map_err(keep)?;
    file.persist(path).map_err(|error| keep(error.error))?;
    Ok(())
}

/// What the compiler is told. Contraction to fused multiply-adds is on by default and part of the numerics.
fn options(arch: &str) -> Vec<String> {
    vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()]
}

/// Of text and options. The compiler's version is left out: PTX of another one is as good.
fn hash(text: &str, arch: &str) -> String {
    let mut hash = Sha256::new();
    for part in options(arch) {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.update(text.as_bytes());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn compile(source: Source, text: &str, arch: &str) -> Result<String, KernelError> {
    compiler()?;
    let options = CompileOptions {
        options: options(arch),
        name: Some(format!("{source:?}.cu")),
        ..CompileOptions::default()
    };
    match compile_ptx_with_opts(text, options) {
        Ok(ptx) => Ok(ptx.to_src()),
        Err(error) => Err(KernelError::Compile {
            file: source,
            arch: arch.to_owned(),
            reason: reason(error),
        }),
    }
}

fn reason(error: CompileError) -> String {
    match error {
        CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
        other => format!("{other:?}"),
    }
}

fn compile_cubin(source: Source, arch: &str) -> Result<Vec<u8>, KernelError> {
    compiler()?;
    let refused = |reason: String| KernelError::Compile {
        file: source,
        arch: arch.to_owned(),
        reason,
    };
    let text = CString::new(source.text()).map_err(|error| refused(error.to_string()))?;
    let program = result::create_program(&text, None).map_err(|error| refused(format!("{error:?}")))?;
    // SAFETY: the program was made above and is destroyed below, after its last use.
    let code = unsafe { machine_code(program, arch) };
    // SAFETY: as above.
    let destroyed = unsafe { result::destroy_program(program) };
    let code = code.map_err(refused)?;
    destroyed.map_err(|error| refused(format!("{error:?}")))?;
    Ok(code)
}

/// # Safety
/// `program` exists.
unsafe fn machine_code(program: sys::nvrtcProgram, arch: &str) -> Result<Vec<u8>, String> {
    let said = |error: result::NvrtcError| format!("{error:?}");
    // SAFETY: the caller promises that the program exists; the buffer has the size that the compiler asks for.
    unsafe {
        if let Err(error) = result::compile_program(program, &options(arch)) {
            let log = result::get_program_log(program).map_err(said)?;
            let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
            return Err(format!("{error:?}: {}", String::from_utf8_lossy(&log)));
        }
        let mut size = 0;
        sys::nvrtcGetCUBINSize(program, &raw mut size)
            .result()
            .map_err(said)?;
        let mut code = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast())
            .result()
            .map_err(said)?;
        Ok(code)
    }
}
