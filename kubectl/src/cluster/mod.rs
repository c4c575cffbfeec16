//! The API server, as kubeconfig and flags name it.
//!
//! | module | what it is |
//! |---|---|
//! | [`list`] | lists, a page at a time |
//! | [`say`] | what the API server's refusals mean for the user |

pub mod list;
pub mod say;

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    core::NamespaceResourceScope,
};

use crate::options::Connection;

/// A connection, and the namespace that commands are about.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl Cluster {
    /// Connects as the flags say. Nothing is sent yet. `streams`: connections may be silent for longer than an answer may take.
    ///
    /// # Errors
    /// No kubeconfig, or one that makes no sense.
    pub async fn connect(options: &Connection, streams: bool) -> Result<Self> {
        let mut config = config(options).await?;
        let patience = Duration::from_secs(options.request_timeout);
        config.connect_timeout = Some(patience.min(Duration::from_secs(30)));
        config.read_timeout = (!streams).then_some(patience);
        if let Some(user) = &options.impersonate {
            config.auth_info.impersonate = Some(user.clone());
        }
        let namespace = options.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("cannot use the kubeconfig")?;
        Ok(Self { client, namespace })
    }

    /// Objects of one namespace, or of all.
    #[must_use]
    pub fn api<K>(&self, all_namespaces: bool) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        if all_namespaces {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), &self.namespace)
        }
    }
}

async fn config(options: &Connection) -> Result<Config> {
    let choice = KubeConfigOptions {
        context: options.context.clone(),
        cluster: options.cluster.clone(),
        user: options.user.clone(),
    };
    if let Some(path) = &options.kubeconfig {
        let file = Kubeconfig::read_from(path)
            .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
        return Ok(Config::from_custom_kubeconfig(file, &choice).await?);
    }
    let chosen = choice.context.is_some() || choice.cluster.is_some() || choice.user.is_some();
    if chosen {
        return Config::from_kubeconfig(&choice)
            .await
            .context("no such context, cluster or user: see kubectl config view");
    }
    Config::infer()
        .await
        .context("no cluster: set KUBECONFIG, give --kubeconfig, or run in a pod with a service account")
}
