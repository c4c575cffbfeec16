//! The first process of a worker pod. It holds no engine and touches no accelerator, so that it survives what may
//! kill a rank: it starts one process per rank, keeps the memory files of their weights, and talks to the operator.
//!
//! | module | what it is |
//! |---|---|
//! | [`pod`] | state of the ranks, pure |
//! | [`phases`] | how long a rank took to serve, pure |
//! | [`enrolment`] | the pod's certificate |
//! | [`identity`] | which weights these are |
//! | [`memory`] | memory files that outlive the ranks |
//! | [`process`] | keeps one rank's process running |
//! | [`backoff`] | how long to wait before a restart |
//! | [`last_words`] | standard error of a rank, and why it ended |
//! | [`listening`] | tells the ports, connects a group that stands alone |
//! | [`orphaned`] | a member without a leader to wait for |
//! | [`control`] | `llamero.v1.RankControl` |
//! | [`http`], [`metrics`] | `/livez`, `/readyz`, `/metrics` |
//! | [`signals`], [`reaper`] | duties of process 1 |

pub mod backoff;
pub mod control;
pub mod enrolment;
pub mod http;
pub mod identity;
pub mod last_words;
pub mod listening;
pub mod memory;
pub mod metrics;
pub mod orphaned;
pub mod phases;
pub mod pod;
pub mod process;
pub mod reaper;
pub mod signals;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use llamero_identity::Serving;
use llamero_proto::v1::rank_control_server::RankControlServer;
use llamero_settings::listen::listen;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::control::Control;
use self::identity::SharedIdentity;
use self::memory::Memory;
use self::pod::{Identity, Pod};
use self::process::{Ended, Keeper, Orders};
use self::signals::Terminations;
use crate::cli::serve::{InferenceAuth, LocalRanks, ServeArgs};
use crate::config::{BackendKind, RankConfig};
use crate::exit::{FAILED, UNUSABLE};
use crate::grpc;

/// Group UID of a worker that stands alone.
const ALONE: &str = "standalone";

/// Run until the group ends. Returns the exit code.
///
/// # Errors
/// When the arguments do not fit or a port cannot be opened.
pub async fn run(args: ServeArgs) -> anyhow::Result<u8> {
    let mut terminations = Terminations::install()?;
    let local = args.local_ranks()?;
    let listen = args.listen_address();
    let control_listener = bind(listen, args.control_port, "--control-port")?;
    let http_listener = bind(listen, args.http_port, "--http-port")?;
    let ports = (
        control_listener.local_addr()?.port(),
        http_listener.local_addr()?.port(),
    );

    let control = shared_state(&args, local);
    let mut services = JoinSet::new();
    let (serving, enrolling) = enrolment::start(&args.identity, &control)?;
    services.spawn(serve_control(control.clone(), control_listener, serving));
    let routes = http::routes(control.pod.clone());
    services.spawn(async move { Ok(axum::serve(http_listener, routes).await?) });
    let mut helpers = JoinSet::new();
    helpers.spawn(reaper::reap_orphans());
    helpers.spawn(enrolling);
    helpers.spawn(listening::when_all_listen(args.clone(), control.clone(), ports));

    let mut keepers = start_keepers(&args, local, &control)?;
    let mut terminating = false;
    let leave_anyway = orphaned::orphaned(
        control.pod.subscribe(),
        args.engine.drain_grace + Duration::from_secs(5),
    );
    tokio::pin!(leave_anyway);
    loop {
        tokio::select! {
            Some(end) = keepers.join_next() => {
                match end.context("a keeper")? {
                    Ok(Ended::Unusable(exit)) => {
                        // The rank has said why on standard error.
                        tracing::debug!("{}", exit.message);
                        return Ok(UNUSABLE);
                    }
                    Ok(Ended::DiedDraining(exit)) => {
                        tracing::error!("{}", exit.message);
                        return Ok(FAILED);
                    }
                    Ok(Ended::Left) if keepers.is_empty() => return Ok(0),
                    Ok(Ended::Left) => {}
                    Err(error) => return Err(error).context("a rank's process cannot be kept"),
                }
            }
            () = terminations.next() => {
                let leads = control.pod.borrow().leads();
                match (leads, std::mem::replace(&mut terminating, true)) {
                    (true, true) => bail!("told to stop twice: leaving at once"),
                    (true, false) => tracing::info!("told to stop: draining (a second signal stops at once)"),
                    (false, false) => tracing::info!("told to stop: waiting until the leader ends the group"),
                    (false, true) => {}
                }
                control.drain();
            }
            () = &mut leave_anyway, if terminating && !control.pod.borrow().leads() => {
                tracing::info!("the group is not connected: nothing to wait for");
                return Ok(0);
            }
            // Some have done what they were for. One that failed would be missed: nobody would renew the certificate any more.
            Some(helper) = helpers.join_next() => helper.context("a helper of the supervisor failed")?,
            Some(service) = services.join_next() => {
                service.context("a service")??;
                bail!("a service of the supervisor ended");
            }
        }
    }
}

fn shared_state(args: &ServeArgs, local: LocalRanks) -> Control {
    let identity = Identity {
        pod_uid: args.pod_uid.clone(),
        group_uid: args.group_uid.clone().unwrap_or_else(|| ALONE.to_owned()),
        first_rank: local.first,
        world: local.world,
        fixed: match args.engine.backend {
            BackendKind::Cpu => None,
            BackendKind::Cuda => Some("a rank on a GPU keeps the part of the model that it began with"),
        },
        stall_timeout: args.engine.stall_timeout,
    };
    Control {
        pod: Arc::new(watch::Sender::new(Pod::new(
            identity,
            local.count,
            Instant::now(),
        ))),
        orders: Arc::new(watch::Sender::new(Orders::default())),
    }
}

fn bind(ip: IpAddr, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(ip, port);
    let listener = listen(address).with_context(|| {
        format!("cannot listen on {address}: stop what uses it, or choose another port with {flag}")
    })?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

async fn serve_control(control: Control, listener: TcpListener, serving: Serving) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<RankControlServer<Control>>().await;
    let services = grpc::reflection(&["llamero.v1.RankControl", "grpc.health.v1.Health"])?
        .add_service(RankControlServer::new(control))
        .add_service(health_service);
    tonic::transport::Server::builder()
        .add_routes(serving.guard(grpc::with_fallback(services)))
        .serve_with_incoming(serving.incoming(listener))
        .await?;
    Ok(())
}

type Keepers = JoinSet<std::io::Result<Ended>>;

fn start_keepers(args: &ServeArgs, local: LocalRanks, control: &Control) -> anyhow::Result<Keepers> {
    let mut keepers = JoinSet::new();
    let identity = Arc::new(SharedIdentity::new(
        args.engine.model_dir.clone(),
        args.source.clone(),
        args.engine.content_identity,
    ));
    let memory = Arc::new(Memory::new(local).context("cannot make memory files for the weights")?);
    for (index, rank_port) in (0..local.count).zip(args.rank_ports(local.count)?) {
        let config = RankConfig {
            engine: args.engine.clone(),
            rank: local.first + index,
            lost: Vec::new(),
            first_rank: local.first,
            pod_ranks: local.count,
            threads: args.threads(local.count),
            memory_limit: crate::cgroup::memory_limit().map(|limit| limit / u64::from(local.count.max(1))),
            listen: args.listen_address(),
            rank_port,
            inference_port: args.inference_port,
            oversubscribed: args.oversubscribed(local.count),
            installation: match args.inference_auth {
                InferenceAuth::Mutual => args.identity.installation.clone(),
                InferenceAuth::None => None,
            },
            client_roots: args.client_roots_file.clone(),
            adapter_clients: args.adapter_clients.clone(),
            stands_alone: args.group_uid.is_none(),
            instance_id: if args.pod_uid.is_empty() {
                ALONE.to_owned()
            } else {
                args.pod_uid.clone()
            },
        };
        let keeper = Keeper {
            index: index as usize,
            config,
            identity: identity.clone(),
            memory: memory.clone(),
            pod: control.pod.clone(),
            orders: control.orders.subscribe(),
            give_up: args.group_uid.is_none(),
        };
        keepers.spawn(keeper.keep());
    }
    Ok(keepers)
}
