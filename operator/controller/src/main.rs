//! `llamero-operator`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use llamero_operator::{log, options::Options};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = match llamero_settings::log::filter() {
        Ok(filter) => filter,
        // There is no log yet.
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    match start(filter).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn start(filter: EnvFilter) -> anyhow::Result<()> {
    let options = Options::parse();
    let set = log::start(filter, options.log_format);
    if let Some(file) = options.log_filter_file.clone() {
        tokio::spawn(log::follow(file, set));
    }
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancel = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    if options.placeholder {
        stop.cancelled().await;
        return Ok(());
    }
    llamero_operator::run::run(options, stop).await?;
    Ok(())
}
