//! The command line.
//!
//! | module | command |
//! |---|---|
//! | [`serve`] | `serve`: a worker pod |
//! | [`convert`] | `convert`, `quantize`, `shard`: making checkpoints |
//! | [`inspect`] | `inspect`: what a checkpoint is |
//! | [`backends`] | `backends`: what this program can compute on |
//! | [`kernels`] | `kernels`: GPU kernels compiled beforehand |
//! | [`bench`] | `bench`: speed beside the machine's bounds |
//! | [`progress`] | progress on standard error |

pub mod backends;
pub mod bench;
pub mod convert;
pub mod inspect;
pub mod kernels;
pub mod progress;
pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use llamero_engine::BackendError;
use llamero_engine::text::TokenizerError;
use llamero_settings::log;
use llamero_sources::FetchError;

use crate::exit::{BUG, FAILED, UNUSABLE};
use crate::rank::settings::SettingsError;
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
    /// One file for each rank.
    Shard(convert::ShardArgs),
    /// What a checkpoint is.
    Inspect(inspect::InspectArgs),
    /// Speed beside the machine's bounds.
    Bench(bench::BenchArgs),
    /// What this program can compute on, on this machine.
    Backends,
    /// GPU kernels compiled beforehand.
    Kernels(kernels::KernelsArgs),
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
        // Who reads the log may be gone: then nothing is told, instead of a panic of whoever tells.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let outcome = match &cli.command {
        Command::Serve(args) => serve((**args).clone()),
        Command::Rank { rank } => rank::run(*rank),
        Command::Convert(args) => convert::convert(args).map(|()| 0),
        Command::Quantize(args) => convert::quantize(args).map(|()| 0),
        Command::Shard(args) => convert::shard(args).map(|()| 0),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Bench(args) => bench::bench(args).map(|()| 0),
        Command::Kernels(args) => kernels::kernels(args).map(|()| 0),
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
    error.chain().find_map(code_of_cause).unwrap_or(FAILED)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<SettingsError>() {
        return Some(match error {
            SettingsError::Context { .. } => UNUSABLE,
            SettingsError::Checkpoint(error) => of_checkpoint(error),
            SettingsError::Backend(error) => of_backend(error),
        });
    }
    let checkpoint = cause.downcast_ref().map(of_checkpoint);
    let tokenizer = || match cause.downcast_ref::<TokenizerError>()? {
        TokenizerError::Io(_) => Some(FAILED),
        _ => Some(UNUSABLE),
    };
    let hub = || {
        cause
            .downcast_ref()
            .is_some_and(FetchError::is_final)
            .then_some(UNUSABLE)
    };
    let arguments = || cause.is::<serve::ArgumentsError>().then_some(UNUSABLE);
    checkpoint
        .or_else(|| cause.downcast_ref().map(of_backend))
        .or_else(tokenizer)
        .or_else(hub)
        .or_else(arguments)
}

fn of_backend(error: &BackendError) -> u8 {
    match error {
        BackendError::Unusable(_) => UNUSABLE,
        BackendError::Bug(_) => BUG,
        BackendError::Lost(_) | BackendError::Unavailable(_) | BackendError::Cancelled => FAILED,
    }
}

fn of_checkpoint(error: &llamero_checkpoint::Error) -> u8 {
    match error.is_passing() {
        true => FAILED,
        false => UNUSABLE,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_code_says_whether_another_start_can_help() {
        use llamero_checkpoint::{Error, IoError};
        let io = |kind: std::io::ErrorKind| IoError {
            action: "read",
            path: "model.safetensors".into(),
            source: kind.into(),
        };
        let (passing, missing) = (std::io::ErrorKind::TimedOut, std::io::ErrorKind::NotFound);
        let code = |error: anyhow::Error| exit_code(&error.context("a rank"));
        for (kind, expected) in [(passing, FAILED), (missing, UNUSABLE)] {
            assert_eq!(code(Error::Io(io(kind)).into()), expected);
            assert_eq!(code(BackendError::from(Error::Io(io(kind))).into()), expected);
            assert_eq!(code(SettingsError::from(Error::Io(io(kind))).into()), expected);
        }
        assert_eq!(code(TokenizerError::Io(io(passing)).into()), FAILED);
        assert_eq!(code(TokenizerError::Decoder("none".into()).into()), UNUSABLE);
        let bug = || BackendError::Bug("a test".into());
        assert_eq!(code(bug().into()), BUG);
        assert_eq!(code(SettingsError::Backend(bug()).into()), BUG);
        assert_eq!(code(anyhow::anyhow!("a port is taken")), FAILED);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
