//! Puts the built library where a program's loader finds it.

use std::io;
use std::path::{Path, PathBuf};

/// Names under which programs ask for the driver, the management library and collectives.
const NAMES: [&str; 3] = ["libcuda.so.1", "libnvidia-ml.so.1", "libnccl.so.2"];
/// Name under which cargo builds it.
const BUILT: &str = "libllamero_gpu_emulator.so";

/// Fill `folder` with links: the driver, and every library of `others` (folders, such as that of NVRTC's wheel). A
/// process started with the folder in `LD_LIBRARY_PATH` runs on the emulator.
///
/// # Errors
/// The library was not built, or the links cannot be made.
pub fn lay_out(folder: &Path, others: &[PathBuf]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for name in NAMES {
        link(&built()?, &folder.join(name))?;
    }
    for other in others {
        for entry in std::fs::read_dir(other)? {
            let entry = entry?;
            link(&entry.path(), &folder.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Cargo puts the library of a dependency beside the test that uses it.
fn built() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let found = program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(BUILT))
        .find(|path| path.exists());
    found.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "{BUILT} is not beside {}: build with tests/gpu-emulator/test.sh",
                program.display()
            ),
        )
    })
}

fn link(target: &Path, name: &Path) -> io::Result<()> {
    match std::os::unix::fs::symlink(std::path::absolute(target)?, name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
