//! How large, and where things are.

use clap::Parser;

/// Measures the operator on a running cluster.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// Worker pods.
    #[arg(long, default_value_t = 1000)]
    pub(crate) pods: usize,
    /// Pods of a group.
    #[arg(long, default_value_t = 8)]
    pub(crate) per_group: usize,
    /// LlamaDeployments that they belong to.
    #[arg(long, default_value_t = 5)]
    pub(crate) deployments: usize,
    /// Fake nodes.
    #[arg(long, default_value_t = 100)]
    pub(crate) nodes: usize,
    /// Pods of others, bound when they are created.
    #[arg(long, default_value_t = 0)]
    pub(crate) foreign: usize,
    /// How often half and whole of a tenth of the pods alternate.
    #[arg(long, default_value_t = 10)]
    pub(crate) soak: usize,
    /// For how many seconds the cluster is watched at rest.
    #[arg(long, default_value_t = 30)]
    pub(crate) rest: u64,
    /// Process id of the operator.
    #[arg(long)]
    pub(crate) operator_pid: u32,
    /// `ip:port` of its metrics.
    #[arg(long, default_value = "127.0.0.1:18089")]
    pub(crate) operator_metrics: String,
    /// Seconds until a phase counts as hung.
    #[arg(long, default_value_t = 900)]
    pub(crate) patience: u64,
}

impl Options {
    /// Groups of each deployment.
    pub(crate) fn groups(&self) -> usize {
        (self.pods / self.per_group / self.deployments).max(1)
    }

    /// Pods that there really are.
    pub(crate) fn all_pods(&self) -> usize {
        self.groups() * self.deployments * self.per_group
    }
}
