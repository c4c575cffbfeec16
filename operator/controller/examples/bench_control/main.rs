//! The control plane against a real API server and scheduler, with KWOK's fake nodes and one process that answers for all workers.
//! Started by `tests/bench-control.sh`, which starts everything else.
//!
//! | module | what |
//! |---|---|
//! | [`options`] | how large, and where things are |
//! | [`counts`] | what the whole control plane does |
//! | [`cluster`] | nodes, pods of others, the reference, LlamaDeployments |
//! | [`tally`] | how many pods there are, seen by a watch |
//! | [`workers`] | what answers for the workers |
//! | [`process`] | what the operator's process takes |
//! | [`phases`] | what is measured |

mod cluster;
mod counts;
mod options;
mod phases;
mod process;
mod tally;
mod workers;

use anyhow::Context as _;
use clap::Parser as _;

use crate::{cluster::Cluster, options::Options, phases::Bench, process::Process, tally::Tally};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut config = kube::Config::infer().await.context("set KUBECONFIG")?;
    config.default_namespace = cluster::NAMESPACE.to_owned();
    let client = kube::Client::try_from(config)?;
    let tally = Tally::start(&client);
    workers::start(&client).await?;
    let bench = Bench {
        cluster: Cluster::new(client.clone(), &options),
        client,
        operator: Process::new(options.operator_pid, &options.operator_metrics),
        tally,
        options,
    };
    let result = bench.run().await?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}
