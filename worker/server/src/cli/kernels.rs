//! `kernels`: compile the GPU kernels beforehand, for an image.

use std::path::PathBuf;

use clap::Args;
use llamero_cuda::compile;

/// Compile the GPU kernels for known GPUs, so that ranks need no compiler where they run
///
/// Needs NVRTC, and no GPU. `serve --kernels DIR` takes them from there.
#[derive(Debug, Clone, Args)]
pub struct KernelsArgs {
    /// Folder that is filled
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Run `kernels`.
///
/// # Errors
/// There is no compiler, or the folder cannot be filled.
pub fn kernels(args: &KernelsArgs) -> anyhow::Result<()> {
    let files = compile::fill(&args.dir)?;
    println!("{}: {} files", args.dir.display(), files.len());
    Ok(())
}
