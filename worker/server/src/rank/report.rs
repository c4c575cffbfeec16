//! A rank's side of the link to its supervisor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use llamero_engine::DeviceBoard;
use llamero_engine::mesh::Membership;
use llamero_engine::runtime::{self, EngineHandle, RankControl};
use llamero_identity::credentials::{Current, Publisher};
use llamero_proto::v1::Phase;

use crate::link::{self, Down, Load, RankState, Up};

/// An unchanged state is repeated this often, so that the supervisor knows it is fresh.
const REPEAT: Duration = Duration::from_millis(500);
/// States do not follow each other faster than this, however fast the counters move.
const PAUSE: Duration = Duration::from_millis(50);

/// What a rank says of itself in every report.
#[derive(Debug, Clone)]
pub struct About {
    /// What the weights are.
    pub content_identity: String,
    /// In which arithmetic they are computed.
    pub numerics: String,
    /// What it computes on.
    pub device: Arc<DeviceBoard>,
    /// A group in which nothing moved for longer does not serve.
    pub stall_timeout: Duration,
}

/// The writing end; lines of several threads do not mix.
#[derive(Debug, Clone)]
pub struct Reports {
    stream: Arc<Mutex<UnixStream>>,
}

impl Reports {
    /// Write to `stream`.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream: Arc::new(Mutex::new(stream)),
        }
    }

    /// Send one message.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn send(&self, up: &Up) -> std::io::Result<()> {
        let line = link::line(up)?;
        self.stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(&line)
    }

    /// Report the rank's state until the supervisor is gone.
    pub fn follow(&self, control: &RankControl, engine: Option<&EngineHandle>, about: &About) {
        let mut seen = 0;
        loop {
            let (version, state) = control.watch().changed(seen, REPEAT);
            seen = version;
            if self
                .send(&Up::State(Box::new(rank_state(&state, engine, about))))
                .is_err()
            {
                return;
            }
            std::thread::park_timeout(PAUSE);
        }
    }
}

/// Take orders until the supervisor is gone. Certificates go to `credentials`.
///
/// # Errors
/// When a line cannot be read.
pub fn obey(
    orders: impl BufRead,
    control: &RankControl,
    grace: Duration,
    credentials: &Publisher,
) -> anyhow::Result<()> {
    for line in orders.lines() {
        match serde_json::from_str(&line?)? {
            Down::Start(_) => bail!("started twice"),
            Down::Drain => control.drain(grace),
            Down::Credentials(material) => match Current::new(&material) {
                Ok(current) => credentials.put(current),
                Err(error) => tracing::error!("the certificate that came cannot be used: {error}"),
            },
            Down::Form(membership) => {
                let present = membership.present();
                let addresses = present.map(|(rank, member)| (rank, (member.ip, member.port).into()));
                let addresses = addresses.collect();
                let link::Membership {
                    group_uid,
                    generation,
                    lost,
                    key,
                    ..
                } = membership;
                if let Err(why) = control.form(Membership {
                    group_uid,
                    generation,
                    lost,
                    addresses,
                    key,
                }) {
                    tracing::error!("the members are not taken: {why}");
                }
            }
        }
    }
    Ok(())
}

/// Read the first line.
///
/// # Errors
/// When it is not the start.
pub fn start(orders: &mut BufReader<UnixStream>) -> anyhow::Result<crate::config::RankConfig> {
    let mut line = String::new();
    orders.read_line(&mut line)?;
    match serde_json::from_str(&line).context("the first line is not understood")? {
        Down::Start(config) => Ok(*config),
        other => bail!("expected the start, got {other:?}"),
    }
}

/// The whole group completed a step within the stall time-out, or computes one whose layers move, and nothing drains.
#[must_use]
pub fn serves(engine: &EngineHandle, stall_timeout: Duration) -> bool {
    !engine.load().draining && engine.idle_for().is_some_and(|idle| idle <= stall_timeout)
}

fn rank_state(state: &runtime::RankState, engine: Option<&EngineHandle>, about: &About) -> RankState {
    let millis = |at: Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    let load = engine.map(EngineHandle::load);
    let message = match (state.message.as_str(), state.phase) {
        ("", runtime::Phase::Connecting) => "waits for its members",
        (message, _) => message,
    };
    RankState {
        phase: phase(state.phase).into(),
        loaded_bytes: state.loaded,
        total_bytes: state.total,
        read_bytes: state.read_bytes,
        generation: state.era.generation,
        epoch: state.era.epoch,
        entered: state.entered,
        completed: state.completed,
        idle_millis: state.last_step_at.map(millis),
        layers: state.layers,
        still_millis: state.last_progress_at.map(millis),
        content_identity: about.content_identity.clone(),
        numerics: about.numerics.clone(),
        device: about.device.get(),
        message: message.to_owned(),
        group_serving: engine.is_some_and(|engine| serves(engine, about.stall_timeout)),
        draining: load.as_ref().is_some_and(|load| load.draining),
        longest_sequence: load
            .as_ref()
            .map(|load| load.longest)
            .filter(|longest| *longest > 0),
        load: load.map(|load| Load {
            running: load.running,
            waiting: load.waiting,
            kv_blocks_used: load.kv_blocks_used,
            kv_blocks_total: load.kv_blocks_total,
            prompt_tokens: load.prompt_tokens,
            output_tokens: load.output_tokens,
            prefix_lookup_tokens: load.prefix_lookup_tokens,
            prefix_hit_tokens: load.prefix_hit_tokens,
            drafts: load.drafts,
            draft_tokens: load.draft_tokens,
            accepted_tokens: load.accepted_tokens,
        }),
    }
}

fn phase(phase: runtime::Phase) -> Phase {
    match phase {
        runtime::Phase::Preflight => Phase::Preflight,
        runtime::Phase::Loading => Phase::Loading,
        runtime::Phase::Connecting => Phase::Connecting,
        runtime::Phase::Warming => Phase::Warming,
        runtime::Phase::Serving => Phase::Serving,
        runtime::Phase::Draining => Phase::Draining,
    }
}
