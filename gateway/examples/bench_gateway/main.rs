//! What a gateway costs: `bench_gateway mock` is the workers, `bench_gateway gateway` is ours, and `bench_gateway load` asks
//! through a gateway and prints one JSON object. `tests/bench-gateway.sh` runs them; `docs/benchmarks/gateway.md` says what
//! the figures are.
#![allow(missing_docs, clippy::unwrap_used, reason = "a program of measurements")]

mod load;
mod mock;
mod usage;

use std::net::SocketAddr;

use anyhow::Context as _;
use llamero_gateway::discovery::fixed::FixedModel;
use llamero_gateway::{Gateway, Settings, health, listener, routes};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The model of the benchmark.
const MODEL: &str = "bench";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (role, rest) = arguments.split_first().context("say mock, gateway or load")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match role.as_str() {
            "mock" => mock::serve(address(rest, 0)?, address(rest, 1)?).await,
            "gateway" => serve(address(rest, 0)?, address(rest, 1)?).await,
            "load" => {
                let figures = load::measure(&load::Options::read(rest)?).await?;
                println!("{}", serde_json::to_string(&figures)?);
                Ok(())
            }
            other => anyhow::bail!("{other} is none of mock, gateway and load"),
        }
    })
}

fn address(arguments: &[String], at: usize) -> anyhow::Result<SocketAddr> {
    let text = arguments.get(at).context("an address is missing")?;
    text.parse().with_context(|| format!("{text} is no address"))
}

/// Our gateway with one leader, its listener and its usual limits.
async fn serve(address: SocketAddr, leader: SocketAddr) -> anyhow::Result<()> {
    let gateway = Gateway::new(Settings::default());
    let fixed = FixedModel {
        model: MODEL.to_owned(),
        leaders: vec![leader],
    };
    gateway.publish(vec![fixed.found()]);
    let router = routes::router(gateway.clone()).merge(health::router(gateway.clone()));
    let listener = TcpListener::bind(address).await?;
    listener::serve(
        listener,
        router,
        &gateway.settings,
        None,
        CancellationToken::new().cancelled_owned(),
    )
    .await;
    Ok(())
}
