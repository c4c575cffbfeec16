//! What a gateway costs: `bench_gateway mock` is the workers, `bench_gateway gateway` is ours, and `bench_gateway load` asks
//! through a gateway and prints one JSON object. `tests/bench-gateway.sh` runs them; `docs/benchmarks/gateway.md` says what
//! the figures are. `bench_gateway soak` starts a gateway and `leader`s, which it kills, and tells what thousands of streams through it lost.
#![allow(missing_docs, clippy::unwrap_used, reason = "a program of measurements")]

mod load;
mod mock;
mod paced;
mod soak;
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
    let (role, rest) = arguments
        .split_first()
        .context("say mock, leader, gateway, load or soak")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match role.as_str() {
            "mock" => mock::serve(address(rest, 0)?, address(rest, 1)?).await,
            "leader" => mock::leader(address(rest, 0)?, Some(soak::PACE)).await,
            "gateway" => {
                let leaders = (1..rest.len()).map(|at| address(rest, at));
                serve(address(rest, 0)?, leaders.collect::<Result<_, _>>()?).await
            }
            "soak" => {
                let figures = soak::run(&soak::Options::read(rest)?).await?;
                println!("{}", serde_json::to_string(&figures)?);
                Ok(())
            }
            "load" => {
                let figures = load::measure(&load::Options::read(rest)?).await?;
                println!("{}", serde_json::to_string(&figures)?);
                Ok(())
            }
            other => anyhow::bail!("{other} is none of mock, leader, gateway, load and soak"),
        }
    })
}

fn address(arguments: &[String], at: usize) -> anyhow::Result<SocketAddr> {
    let text = arguments.get(at).context("an address is missing")?;
    text.parse().with_context(|| format!("{text} is no address"))
}

/// Our gateway with these leaders, its listener and its usual limits.
async fn serve(address: SocketAddr, leaders: Vec<SocketAddr>) -> anyhow::Result<()> {
    let gateway = Gateway::new(Settings::default());
    let fixed = FixedModel {
        model: MODEL.to_owned(),
        leaders,
    };
    gateway.publish(vec![fixed.found()]);
    let router = routes::router(gateway.clone()).merge(health::router(gateway.clone()));
    let listener = TcpListener::bind(address).await?;
    listener::serve(
        listener,
        router,
        &gateway,
        None,
        CancellationToken::new().cancelled_owned(),
    )
    .await;
    Ok(())
}
