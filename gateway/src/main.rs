//! `llamero-gateway`: reads its options and runs the gateway.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use llamero_api::namespaces;
use llamero_gateway::discovery::gateways::{self, Place};
use llamero_gateway::discovery::{fixed::FixedModel, kubernetes};
use llamero_gateway::keys::KeyStore;
use llamero_gateway::listener::{Cors, Limits, Tls, tls};
use llamero_gateway::server::{Ending, Listeners, serve};
use llamero_gateway::upstream::dialler::Dialler;
use llamero_gateway::{Gateway, Settings};
use llamero_identity::credentials::pair;
use llamero_identity::enrol::args::EnrolmentArgs;
use llamero_settings::{duration, listen, log};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

/// One OpenAI-compatible address for all LlamaDeployments of a cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Address to listen on; all interfaces unless told.
    #[arg(long, env = "LLAMERO_LISTEN", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    listen: IpAddr,
    /// Port of the OpenAI API.
    #[arg(long, env = "LLAMERO_HTTP_PORT", default_value_t = 8000)]
    http_port: u16,
    /// Port of llamero.v1.Demand, for the operator.
    #[arg(long, env = "LLAMERO_GRPC_PORT", default_value_t = llamero_api::labels::DEMAND_PORT)]
    grpc_port: u16,
    /// Port of /livez, /readyz and /metrics.
    #[arg(long, env = "LLAMERO_HEALTH_PORT", default_value_t = 8081)]
    health_port: u16,
    /// Serve these leaders instead of watching Kubernetes: MODEL=IP:PORT[,IP:PORT…]. May be repeated.
    #[arg(long = "static", value_name = "MODEL=IP:PORT,…")]
    fixed: Vec<FixedModel>,
    /// Only serve LlamaDeployments of these namespaces, comma-separated; at most 64. Default: all namespaces.
    #[arg(long, env = "LLAMERO_WATCH_NAMESPACES", value_delimiter = ',', value_parser = namespaces::name)]
    watch_namespaces: Vec<String>,
    /// How long a request waits for a group of a deployment that has none ready.
    #[arg(long, env = "LLAMERO_HOLD_TIMEOUT", default_value = "10m", value_parser = duration::parse)]
    hold_timeout: Duration,
    /// Most requests that wait so, for each deployment; more are refused with 503.
    #[arg(long, env = "LLAMERO_HOLD_LIMIT", default_value_t = 1000)]
    hold_limit: u32,
    /// Bytes of all waiting requests over all deployments; more are refused with 503.
    #[arg(long, env = "LLAMERO_HOLD_BYTES", default_value_t = 128 << 20)]
    hold_bytes: usize,
    /// Bytes of all requests whose answers are under way, over all deployments; more are refused with 503.
    #[arg(long, env = "LLAMERO_CARRIED_BYTES", default_value_t = 128 << 20)]
    carried_bytes: usize,
    /// PEM file with the certificate of the OpenAI API and its chain; without it the API is plain text.
    #[arg(long, env = "LLAMERO_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key. Both are read again when they change.
    #[arg(long, env = "LLAMERO_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Origin whose pages may use the API from a browser, such as https://chat.example.com; * for all. May be repeated.
    #[arg(
        long = "cors-origin",
        env = "LLAMERO_CORS_ORIGINS",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    cors_origins: Vec<String>,
    /// YAML file with the API keys, such as a mounted Secret; see docs/gateway-keys.md. It is read again when it
    /// changes. Without it the API is open to everybody who reaches it.
    #[arg(long, env = "LLAMERO_API_KEYS")]
    api_keys: Option<PathBuf>,
    /// Service of all gateways, with whom the limits of API keys are kept; needs --pod-namespace and --pod-ip.
    #[arg(long, env = "LLAMERO_GATEWAY_SERVICE", requires_all = ["pod_namespace", "pod_ip"])]
    gateway_service: Option<String>,
    /// Namespace of this gateway's pod.
    #[arg(long, env = "LLAMERO_POD_NAMESPACE")]
    pod_namespace: Option<String>,
    /// Address of this gateway's pod.
    #[arg(long, env = "LLAMERO_POD_IP")]
    pod_ip: Option<IpAddr>,
    /// Who this gateway is, for leaders and the operator.
    #[command(flatten)]
    identity: EnrolmentArgs,
    /// Most connections of clients at once; more are answered with 503.
    #[arg(long, env = "LLAMERO_MAX_CONNECTIONS", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// Most requests of clients at once, waiting ones included; more are answered with 503.
    #[arg(long, env = "LLAMERO_MAX_REQUESTS", default_value_t = Limits::default().requests)]
    max_requests: usize,
    /// How long a request that lost its leader waits for one that goes on with it.
    #[arg(long, env = "LLAMERO_CONTINUATION_TIMEOUT", default_value = "2m", value_parser = duration::parse)]
    continuation_timeout: Duration,
    /// After SIGTERM: pause before connections are refused.
    #[arg(long, env = "LLAMERO_STOP_DELAY", default_value = "3s", value_parser = duration::parse)]
    stop_delay: Duration,
    /// After SIGTERM: time for answers that still run.
    #[arg(long, env = "LLAMERO_STOP_GRACE", default_value = "110s", value_parser = duration::parse)]
    stop_grace: Duration,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(log::filter()?)
        .with_ansi(std::io::stderr().is_terminal())
        // Who reads the log may be gone: then nothing is told, instead of a panic of whoever tells.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .init();
    let options = Options::parse();
    let (dialler, mut enrolling) = enrol(&options.identity)?;
    let gateway = Gateway::new(Settings {
        dialler,
        hold_timeout: options.hold_timeout,
        hold_limit: options.hold_limit,
        hold_bytes: options.hold_bytes,
        carried_bytes: options.carried_bytes,
        continuation_timeout: options.continuation_timeout,
        limits: Limits {
            connections: options.max_connections,
            requests: options.max_requests,
            ..Limits::default()
        },
        cors: Cors::new(&options.cors_origins)?,
        keys: keys(options.api_keys.as_deref())?,
        ..Settings::default()
    });
    let place = place(&options);
    let tls = tls(options.tls_cert, options.tls_key)?;
    allow_descriptors();
    if options.fixed.is_empty() {
        let client = kube::Client::try_default()
            .await
            .context("cannot reach Kubernetes; inside a cluster give the pod a service account, outside set KUBECONFIG, or use --static")?;
        if let Some(place) = place {
            tokio::spawn(gateways::watch(client.clone(), place, gateway.clone()));
        }
        let served = namespaces::served(&options.watch_namespaces)?;
        tokio::spawn(kubernetes::watch(client, served, gateway.clone()));
    } else {
        gateway.publish(options.fixed.iter().map(FixedModel::found).collect());
    }
    let listeners = Listeners {
        http: bind(options.listen, options.http_port)?,
        grpc: bind(options.listen, options.grpc_port)?,
        health: bind(options.listen, options.health_port)?,
    };
    tracing::info!(
        port = options.http_port,
        encrypted = tls.is_some(),
        "serving the OpenAI API"
    );
    let stop = told_to_stop()?;
    let ending = Ending {
        delay: options.stop_delay,
        grace: options.stop_grace,
    };
    tokio::select! {
        served = serve(gateway, listeners, tls, ending, stop) => Ok(served?),
        // Nobody would renew the certificate any more.
        ended = &mut enrolling => Err(gone(ended)),
    }
}

/// What renews the certificate never ends by itself.
fn gone(ended: Result<(), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("what renews the certificate has ended"),
        Err(error) => anyhow::Error::new(error).context("what renews the certificate has failed"),
    }
}

/// Ends with SIGTERM and SIGINT, which are listened to from here on.
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Enrols, and renews, beside everything else; and what does it, which never ends.
fn enrol(args: &EnrolmentArgs) -> anyhow::Result<(Option<Dialler>, JoinHandle<()>)> {
    let Some(enrolment) = args.enrolment()? else {
        return Ok((None, tokio::spawn(std::future::pending())));
    };
    let (publisher, credentials) = pair();
    let dialler = Dialler {
        credentials,
        trust_domain: enrolment.trust_domain.clone(),
        installation: enrolment.installation.clone(),
    };
    let enrolling = tokio::spawn(enrolment.keep(publisher, |_, _| ()));
    Ok((Some(dialler), enrolling))
}

fn keys(path: Option<&Path>) -> anyhow::Result<Option<Arc<KeyStore>>> {
    let Some(path) = path else {
        tracing::warn!(
            "the API is open: whoever reaches it may use every model; give --api-keys to close it"
        );
        return Ok(None);
    };
    let keys = KeyStore::load(path).with_context(|| format!("cannot use {}", path.display()))?;
    tracing::info!(
        keys = keys.names().len(),
        "the API is open to holders of keys only"
    );
    Ok(Some(Arc::new(keys)))
}

/// Where the other gateways are, for the limits of keys.
fn place(options: &Options) -> Option<Place> {
    let (service, namespace) = options
        .gateway_service
        .clone()
        .zip(options.pod_namespace.clone())?;
    Some(Place {
        namespace,
        service,
        own: SocketAddr::new(options.pod_ip?, options.grpc_port),
    })
}

fn tls(certificate: Option<PathBuf>, key: Option<PathBuf>) -> anyhow::Result<Option<Arc<Tls>>> {
    let files = certificate.zip(key);
    let files = files.map(|(certificate, key)| tls::Files { certificate, key });
    Ok(files.map(Tls::load).transpose()?.map(Arc::new))
}

/// Every connection takes a descriptor, and hosts hand out few unless asked for as many as are allowed.
fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files; there may be fewer connections");
    }
}

fn bind(ip: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    let listener = listen::listen(SocketAddr::new(ip, port))
        .with_context(|| format!("cannot listen on port {port}; is another program using it?"))?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_renews_no_certificate_any_more_says_why() {
        let failed = tokio::spawn(async { panic!("a bug") }).await;
        let told = format!("{:#}", gone(failed));
        assert!(
            told.contains("what renews the certificate has failed") && told.contains("panicked"),
            "{told}"
        );
    }

    #[test]
    fn options_are_consistent() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }
}
