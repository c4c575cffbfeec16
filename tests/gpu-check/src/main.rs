//! The program of the check: `gpu-check STAGE` runs one stage, `gpu-check` lists them, `gpu-check compile` makes the kernels'
//! machine code.

use std::path::PathBuf;
use std::process::ExitCode;

use llamero_gpu_check::stages::{Check, STAGES, compile};

fn main() -> ExitCode {
    let Some(stage) = std::env::args().nth(1) else {
        println!("{}", STAGES.join("\n"));
        return ExitCode::SUCCESS;
    };
    let folder = std::env::var_os("LLAMERO_GPU_CHECK").map_or_else(|| PathBuf::from("."), PathBuf::from);
    if stage == "compile" {
        return outcome(&stage, compile(&folder.join("kernels")));
    }
    let check = Check {
        folder,
        small: std::env::var_os("LLAMERO_GPU_CHECK_SMALL").is_some(),
    };
    outcome(&stage, check.run(&stage))
}

fn outcome(stage: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("  {stage}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
