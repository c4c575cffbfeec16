//! One rank's process: the engine on a thread of its own, the link to the supervisor, and gRPC on rank 0.
//!
//! | module | what it is |
//! |---|---|
//! | [`settings`] | from command line and checkpoint to the engine's settings |
//! | [`backend`] | the backend that was asked for |
//! | [`open`] | from a rank's configuration to an engine that can run |
//! | [`clients`] | the thread that answers clients |
//! | [`alone`] | a group of one rank inside another program |
//! | [`report`] | orders from the supervisor, states to it |

pub mod alone;
pub mod backend;
pub mod clients;
pub mod open;
pub mod report;
pub mod settings;

use std::io::BufReader;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use llamero_cpu::PodMemory;
use llamero_engine::runtime::Outcome;
use llamero_identity::Serving;
use llamero_identity::admitted::Admitted;
use llamero_identity::credentials::pair;
use llamero_settings::listen::listen;

use self::clients::Clients;
use self::open::{Opened, WeightsMemory};
use self::report::Reports;
use crate::config::RankConfig;
use crate::exit::FAILED;
use crate::link::{self, Up};

/// How long a rank that has failed on a device lives on for its last report: longer than between two of them.
const LAST_REPORT: Duration = Duration::from_millis(750);

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

    let memory = memory(&config, files)?;
    let leads = client_listener.is_some();
    let Opened {
        runtime,
        about,
        model,
    } = open::open(&config, rank_listener, memory, leads)?;
    let (control, engine) = (runtime.control(), runtime.engine());
    let device = Arc::clone(&about.device);

    let grace = config.engine.drain_grace;
    let (publisher, credentials) = pair();
    let serving = match config.installation.clone() {
        Some(installation) => {
            let admitted = config.client_roots.clone().map(Admitted::by);
            Serving::mutual(credentials, installation).admitting(admitted, config.adapter_clients.clone())
        }
        None if config.stands_alone => Serving::plain(),
        None => Serving::plain_for_clients(),
    };
    let clients = match (client_listener, model) {
        (Some(listener), Some(model)) => Some(Clients::serve(listener, serving, model, engine.clone())?),
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
        let _end = EndOfProcess;
        if let Err(error) = report::obey(orders, &control, grace, &publisher) {
            tracing::error!("the supervisor cannot be understood: {error:#}");
        }
    })?;

    let outcome = runtime.run();
    if outcome.is_err() && device.get().is_some() {
        // What the driver says of the device comes a moment after the call that failed, and is told with the next report.
        thread::park_timeout(LAST_REPORT);
    }
    let outcome = outcome?;
    tracing::info!(rank, ?outcome, "the group ends");
    if let Some(clients) = clients {
        clients.finish();
    }
    if matches!(outcome, Outcome::Drained | Outcome::Left) {
        reports.send(&Up::Left)?;
    }
    Ok(0)
}

/// Ends the process when it is dropped, also by a panic: without orders nobody is left who would start or stop this rank,
/// and it must not outlive its supervisor.
struct EndOfProcess;

impl Drop for EndOfProcess {
    fn drop(&mut self) {
        std::process::exit(FAILED.into());
    }
}

/// This rank's memory file, and those of the pod if it is to load with others: see [`link`].
fn memory(config: &RankConfig, mut files: Vec<OwnedFd>) -> anyhow::Result<WeightsMemory> {
    if let [_] = files.as_slice() {
        return Ok(WeightsMemory {
            own: files.pop(),
            pod: None,
        });
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
    Ok(WeightsMemory {
        own: Some(own),
        pod: Some(pod),
    })
}

fn bind(config: &RankConfig, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(config.listen, port);
    listen(address).with_context(|| format!("cannot listen on {address}: another process uses the port"))
}
