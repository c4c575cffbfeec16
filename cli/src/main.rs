//! The program `llamero`; everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use llamero::options::{Cli, Command};
use llamero::{cache, manage, run, source};
use llamero_settings::log;
use llamero_sources::FetchError;
use llamero_worker::exit::UNUSABLE;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let usual = if cli.verbose { "info" } else { "warn" };
    let filter = match log::filter_or(usual) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(UNUSABLE);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Who reads the log may be gone: then nothing is told, instead of a panic of whoever tells.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let outcome = match &cli.command {
        Command::Run(args) => run::run(args, cli.verbose),
        Command::Pull(args) => manage::pull(args),
        Command::List(args) => manage::list(&args.cache),
        Command::Rm(args) => manage::rm(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// As the worker's, with the reasons of this program for which another try cannot help.
fn exit_code(error: &anyhow::Error) -> u8 {
    let hopeless = error.chain().any(|cause| {
        cause.is::<source::SourceError>()
            || cause
                .downcast_ref::<FetchError>()
                .is_some_and(FetchError::is_final)
            || matches!(cause.downcast_ref(), Some(cache::CacheError::Unknown(_)))
    });
    if hopeless {
        return UNUSABLE;
    }
    llamero_worker::cli::exit_code(error)
}
