//! From a rank's configuration to an engine that can run. Headers are read and checked; no weight is.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use llamero_cpu::PodMemory;
use llamero_engine::Backend as _;
use llamero_engine::runtime::RankRuntime;

use super::backend::AnyBackend;
use super::report::About;
use super::settings;
use crate::config::RankConfig;
use crate::inference::Model;
use crate::source;

/// A rank that has not begun to load.
pub struct Opened {
    /// The engine.
    pub runtime: RankRuntime<AnyBackend>,
    /// What the rank says of itself.
    pub about: About,
    /// Tokenizer and template, on the rank that leads.
    pub model: Option<Model>,
}

/// Where the weights go.
#[derive(Debug, Default)]
pub struct WeightsMemory {
    /// This rank's memory file; without one they live in this process.
    pub own: Option<OwnedFd>,
    /// The memory files of the pod, when its ranks load together.
    pub pod: Option<PodMemory>,
}

/// Check the checkpoint and prepare the engine of a rank that listens on `listener` for its peers. The weights go into
/// `memory`.
///
/// # Errors
/// The checkpoint cannot be used, or not so.
pub fn open(
    config: &RankConfig,
    listener: TcpListener,
    memory: WeightsMemory,
    leads: bool,
) -> anyhow::Result<Opened> {
    let rank_port = listener.local_addr()?.port();
    let backend = AnyBackend::open(config, source::open(&config.engine.model_dir)?, memory)?;
    let settings = settings::settings(config, &backend)?;
    tracing::info!(rank = config.rank, numerics = %settings.numerics, threads = config.threads, rank_port, "started");
    let model = leads
        .then(|| Model::open(config, &settings, backend.checkpoint()))
        .transpose()?;
    let about = About {
        content_identity: settings.content.clone(),
        numerics: settings.numerics.clone(),
        device: backend.device_board(),
        stall_timeout: config.engine.stall_timeout,
    };
    let runtime = RankRuntime::new(backend, settings, listener)?;
    Ok(Opened {
        runtime,
        about,
        model,
    })
}
