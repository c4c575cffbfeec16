//! The program `kubectl-llamero`; everything is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use kubectl_llamero::{exit, options::Cli, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run::run(&cli) {
        Ok(code) => code.into(),
        Err(error) if exit::nobody_reads(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            exit::Code::Failed.into()
        }
    }
}
