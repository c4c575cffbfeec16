//! `llamero-operator`.
#![forbid(unsafe_code)]

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use llamero_operator::options::{LogFormat, Options};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn start() -> anyhow::Result<()> {
    let options = Options::parse();
    // The client's own lines say again, with less, what ours say.
    let filter = EnvFilter::try_from_env("LLAMERO_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info"))
        .add_directive("kube_client::client::builder=off".parse()?);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stdout().is_terminal());
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
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
    llamero_operator::run::run(options, stop).await?;
    Ok(())
}
