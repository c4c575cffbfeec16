//! Where things lie in the checkout.

use std::path::{Path, PathBuf};

/// Top folder of the checkout.
#[must_use]
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Folder of everything that is built or running; not under version control.
#[must_use]
pub fn local() -> PathBuf {
    root().join(".local")
}

/// Folder of the cluster's programs and of the tools (`kubectl`, `helm`, `grpcurl`).
#[must_use]
pub fn binaries() -> PathBuf {
    local().join("bin")
}

/// Path of one program in [`binaries`].
#[must_use]
pub fn program(name: &str) -> PathBuf {
    binaries().join(name)
}

/// Folder of the image archives that `make images` writes.
#[must_use]
pub fn images() -> PathBuf {
    local().join("images")
}

/// Path of a program of this workspace that was built beside the running test.
///
/// # Errors
/// It was not built.
pub fn built(name: &str) -> std::io::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    let program = folder.join(name);
    program.metadata()?;
    Ok(program)
}
