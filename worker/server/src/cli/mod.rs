//! The command line.
//!
//! | module | command |
//! |---|---|
//! | [`serve`] | `serve`: a worker pod |
//! | [`convert`] | `convert`, `quantize`: making checkpoints |
//! | [`inspect`] | `inspect`: what a checkpoint is |
//! | [`backends`] | `backends`: what this program can compute on |
//! | [`bench`] | `bench`: speed beside the machine's bounds |
//! | [`progress`] | progress on standard error |

pub mod backends;
pub mod bench;
pub mod convert;
pub mod inspect;
pub mod progress;
pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use llamero_engine::BackendError;
use llamero_engine::text::TokenizerError;
use llamero_settings::log;

use crate::exit::{BUG, FAILED, UNUSABLE};
use crate::{rank, supervisor};

/// Serve a Llama model, sharded over processes and pods; prepare and inspect checkpoints
#[derive(Debug, Parser)]
#[command(name = "llamero-worker", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model: a supervisor that starts one process per rank.
    Serve(Box<serve::ServeArgs>),
    /// One rank; started by `serve`.
    #[command(hide = true)]
    Rank {
        /// Number of the rank, to tell processes apart.
        #[arg(long)]
        rank: u32,
    },
    /// GGUF to Hugging Face.
    Convert(convert::ConvertArgs),
    /// bf16 to FP8.
    Quantize(convert::QuantizeArgs),
    /// What a checkpoint is.
    Inspect(inspect::InspectArgs),
    /// Speed beside the machine's bounds.
    Bench(bench::BenchArgs),
    /// What this program can compute on, on this machine.
    Backends,
}

/// Run the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match log::filter() {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(UNUSABLE);
        }
    };
    // Log lines go where errors go: standard output belongs to results.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let outcome = match &cli.command {
        Command::Serve(args) => serve((**args).clone()),
        Command::Rank { rank } => rank::run(*rank),
        Command::Convert(args) => convert::convert(args).map(|()| 0),
        Command::Quantize(args) => convert::quantize(args).map(|()| 0),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Bench(args) => bench::bench(args).map(|()| 0),
        Command::Backends => {
            backends::backends();
            Ok(0)
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn serve(args: serve::ServeArgs) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let code = runtime.block_on(supervisor::run(args));
    runtime.shutdown_background();
    code
}

/// The code of [`crate::exit`] that an error ends the program with: whether another start can help.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let backend = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<BackendError>());
    match backend {
        Some(BackendError::Unusable(_)) => return UNUSABLE,
        Some(BackendError::Bug(_)) => return BUG,
        Some(BackendError::Lost(_) | BackendError::Cancelled) => return FAILED,
        None => {}
    }
    let unusable = error.chain().any(|cause| {
        cause.is::<llamero_checkpoint::Error>()
            || cause.is::<rank::settings::SettingsError>()
            || cause.is::<serve::ArgumentsError>()
            || cause.is::<TokenizerError>()
    });
    if unusable { UNUSABLE } else { FAILED }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
