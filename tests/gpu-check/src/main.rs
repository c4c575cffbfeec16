//! The program of the check: `gpu-check STAGE` runs one stage, `gpu-check` lists them, `gpu-check table` writes the table of
//! their results. `gpu-check compile` makes the kernels' machine code, `gpu-check rank` is a process of the stage `processes`.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use llamero_cuda::compile::fill;
use llamero_gpu_check::stages::{Check, STAGES};
use llamero_gpu_check::{processes, table};

fn main() -> ExitCode {
    let Some(command) = std::env::args().nth(1) else {
        println!("{}", STAGES.join("\n"));
        return ExitCode::SUCCESS;
    };
    let folder = std::env::var_os("LLAMERO_GPU_CHECK").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let check = Check {
        folder,
        small: std::env::var_os("LLAMERO_GPU_CHECK_SMALL").is_some(),
    };
    let result = match command.as_str() {
        "compile" => compile(&check.kernels()),
        "table" => table::write(&check.folder),
        "rank" => processes::rank(&check.kernels(), std::env::args().skip(2).collect()),
        stage => check.run(stage),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("  {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Fill the folder of kernels, and empty it of those of earlier texts.
fn compile(folder: &Path) -> anyhow::Result<()> {
    let made = fill(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !made.contains(&path) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
