//! CUDA C++ to PTX, kept by content hash.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};
use sha2::{Digest, Sha256};

use crate::device::Device;
use crate::probe::{Absent, compiler, describe};
use crate::source::Source;

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

    fn load(&self, source: Source) -> Result<Arc<CudaModule>, KernelError> {
        let ptx = ptx(source, &arch(self.device.capability), self.folder.as_deref())?;
        let module = self.device.context.load_module(Ptx::from_src(ptx));
        module.map_err(|error| refused(&format!("{source:?}"), error))
    }
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
    let path = folder.join(format!("{}.ptx", hash(&text, arch)));
    let keep = |reason| KernelError::Keep {
        path: path.clone(),
        reason,
    };
    match std::fs::read_to_string(&path) {
        Ok(ptx) => return Ok(ptx),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(keep(error)),
    }
    let ptx = compile(source, &text, arch)?;
    // A reader sees nothing or all of it.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(keep)?;
    file.write_all(ptx.as_bytes()).map_err(keep)?;
    file.persist(&path).map_err(|error| keep(error.error))?;
    Ok(ptx)
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
