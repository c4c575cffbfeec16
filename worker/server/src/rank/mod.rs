//! One rank's process: the engine on a thread of its own, the link to the supervisor, and gRPC on rank 0.
//!
//! | module | what it is |
//! |---|---|
//! | [`settings`] | from command line and checkpoint to the engine's settings |
//! | [`report`] | orders from the supervisor, states to it |

pub mod report;
pub mod settings;

use std::io::BufReader;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::Context as _;
use llamero_checkpoint::Topology;
use llamero_cpu::{CpuBackend, CpuOptions, Kernel, PodMemory, Waits};
use llamero_engine::runtime::{Outcome, RankRuntime};
use tokio_util::sync::CancellationToken;

use self::report::{About, Reports};
use crate::config::RankConfig;
use crate::exit::FAILED;
use crate::link::{self, Up};
use crate::{inference, listen};

/// Run the rank whose supervisor is at the other end of standard input. Returns the exit code.
///
/// # Errors
/// When the checkpoint cannot be used, a port not opened, or nobody started this process properly.
pub fn run(rank: u32) -> anyhow::Result<u8> {
    // Shown by `ps`; nothing depends on it.
    let _ = std::fs::write("/proc/self/comm", format!("llamero-rank-{rank}"));
    let stdin = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let files = link::receive_files(&stdin).context("no link to a supervisor on standard input")?;
    let reports = Reports::new(stdin.try_clone()?);
    let mut orders = BufReader::new(stdin);
    let config = report::start(&mut orders)?;

    let rank_listener = bind(&config, config.rank_port)?;
    let rank_port = rank_listener.local_addr()?.port();
    let client_listener = (config.rank == 0)
        .then(|| bind(&config, config.inference_port))
        .transpose()?;
    let inference_port = match &client_listener {
        Some(listener) => Some(listener.local_addr()?.port()),
        None => None,
    };

    let (memory, pod) = memory(&config, files)?;
    let options = CpuOptions {
        topology: Topology {
            tensor: config.engine.tensor,
            pipeline: config.engine.pipeline,
        },
        rank: config.rank,
        memory: Some(memory),
        pod,
        threads: config.threads as usize,
        kernel: Kernel::detect(),
        waits: Waits::new(config.engine.stall_timeout, config.oversubscribed),
    };
    let backend = CpuBackend::new(&config.engine.model_dir, options)?;
    let settings = settings::settings(&config, &backend)?;
    tracing::info!(rank, kernel = %settings.numerics, threads = config.threads, rank_port, "started");
    let model = match client_listener.is_some() {
        true => Some(inference::Model::open(&config, &settings, backend.checkpoint())?),
        false => None,
    };
    let about = About {
        content_identity: settings.content.clone(),
        numerics: settings.numerics.clone(),
        stall_timeout: config.engine.stall_timeout,
    };
    let runtime = RankRuntime::new(backend, settings, rank_listener)?;
    let (control, engine) = (runtime.control(), runtime.engine());

    let grace = config.engine.drain_grace;
    let clients = match (client_listener, model) {
        (Some(listener), Some(model)) => Some(serve_clients(listener, model, engine.clone())?),
        _ => None,
    };
    reports.send(&Up::Listening {
        rank_port,
        inference_port,
    })?;
    thread::Builder::new().name("reports".into()).spawn({
        let (reports, control) = (reports.clone(), control.clone());
        let engine = (rank == 0).then_some(engine);
        move || reports.follow(&control, engine.as_ref(), &about)
    })?;
    thread::Builder::new().name("orders".into()).spawn(move || {
        if let Err(error) = report::obey(orders, &control, grace) {
            tracing::error!("the supervisor cannot be understood: {error:#}");
        }
        // Nobody is left who would start or stop this process: it must not outlive its supervisor.
        std::process::exit(FAILED.into());
    })?;

    let outcome = runtime.run()?;
    tracing::info!(rank, ?outcome, "the group ends");
    if let Some(clients) = clients {
        clients.finish();
    }
    if matches!(outcome, Outcome::Drained | Outcome::Left) {
        reports.send(&Up::Left)?;
    }
    Ok(0)
}

/// This rank's memory file, and those of the pod if it is to load with others: see [`link`].
fn memory(config: &RankConfig, mut files: Vec<OwnedFd>) -> anyhow::Result<(OwnedFd, Option<PodMemory>)> {
    if let [_] = files.as_slice() {
        return Ok((files.remove(0), None));
    }
    let notes = files.remove(0);
    let own = config
        .rank
        .checked_sub(config.first_rank)
        .and_then(|index| files.get(index as usize))
        .with_context(|| format!("no memory file came for rank {}", config.rank))?
        .try_clone()?;
    let pod = PodMemory {
        first: config.first_rank,
        weights: files,
        notes,
    };
    Ok((own, Some(pod)))
}

fn bind(config: &RankConfig, port: u16) -> anyhow::Result<TcpListener> {
    listen::listen(config.listen, port).with_context(|| {
        let address = SocketAddr::new(config.listen, port);
        format!("cannot listen on {address}: another process uses the port")
    })
}

/// The thread that answers clients.
struct Clients {
    stop: CancellationToken,
    thread: thread::JoinHandle<()>,
}

fn serve_clients(
    listener: TcpListener,
    model: inference::Model,
    engine: llamero_engine::runtime::EngineHandle,
) -> anyhow::Result<Clients> {
    let stop = CancellationToken::new();
    let closing = stop.clone();
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let thread = thread::Builder::new().name("clients".into()).spawn(move || {
        if let Err(error) = tokio.block_on(inference::serve(listener, model, engine, closing)) {
            tracing::error!("clients can no longer be served: {error:#}");
            std::process::exit(FAILED.into());
        }
        tokio.shutdown_background();
    })?;
    Ok(Clients { stop, thread })
}

impl Clients {
    /// Let answers reach their clients, then close.
    fn finish(self) {
        self.stop.cancel();
        // It may have ended by itself.
        let _ = self.thread.join();
    }
}
