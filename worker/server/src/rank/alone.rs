//! A group of one rank inside another program: the engine on a thread, `llamero.v1` and `vllm` on a loopback port.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use llamero_checkpoint::Progress;
use llamero_engine::BackendError;
use llamero_engine::mesh::{GroupKey, Membership};
use llamero_engine::runtime::{Outcome, Phase, RankControl};
use llamero_identity::Serving;

use super::clients::Clients;
use super::open::{Opened, WeightsMemory, open};
use crate::config::{EngineArgs, RankConfig};

/// How soon the end of the engine is noticed.
const LOOK: Duration = Duration::from_millis(100);

/// An engine and its gRPC server in this process.
#[derive(Debug)]
pub struct Alone {
    control: RankControl,
    clients: Clients,
    engine: thread::JoinHandle<Result<Outcome, BackendError>>,
    address: SocketAddr,
}

impl Alone {
    /// Check the checkpoint and begin to load it.
    ///
    /// # Errors
    /// The checkpoint cannot be used, or not so; no loopback port is free.
    pub fn start(engine: EngineArgs) -> anyhow::Result<Self> {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no loopback port is free");
        let (ranks, clients) = (listen()?, listen()?);
        let (member, address) = (ranks.local_addr()?, clients.local_addr()?);
        let cores = u32::try_from(llamero_cpu::cores()).unwrap_or(u32::MAX);
        let threads = engine.threads.unwrap_or(cores).max(1);
        let config = RankConfig {
            rank: 0,
            lost: Vec::new(),
            first_rank: 0,
            pod_ranks: 1,
            threads,
            memory_limit: crate::cgroup::memory_limit(),
            listen: member.ip(),
            rank_port: member.port(),
            inference_port: address.port(),
            oversubscribed: threads > cores,
            installation: None,
            client_roots: None,
            adapter_clients: Vec::new(),
            stands_alone: true,
            instance_id: format!("llamero-{}", std::process::id()),
            engine,
        };
        let Opened { runtime, model, .. } = open(&config, ranks, WeightsMemory::default(), true)?;
        let model = model.context("rank 0 has no tokenizer")?;
        let control = runtime.control();
        let membership = Membership {
            group_uid: "alone".to_owned(),
            generation: 1,
            lost: Vec::new(),
            addresses: Membership::in_rank_order([member]),
            key: GroupKey::random().context("the system has no random numbers for a key")?,
        };
        control.form(membership).map_err(|why| anyhow!(why))?;
        let clients = Clients::serve(clients, Serving::plain(), model, runtime.engine())?;
        let engine = thread::Builder::new()
            .name("engine".into())
            .spawn(move || runtime.run())?;
        Ok(Self {
            control,
            clients,
            engine,
            address,
        })
    }

    /// Where gRPC is served; requests wait there until the model serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Wait until the model serves, telling how far loading is.
    ///
    /// # Errors
    /// Why the engine ended.
    pub fn wait(self, report: &mut dyn FnMut(Progress)) -> anyhow::Result<Self> {
        let (mut seen, mut loaded) = (0, false);
        loop {
            let (version, state) = self.control.watch().changed(seen, LOOK);
            seen = version;
            if state.total > 0 && !loaded {
                let (done, total) = (state.loaded, state.total);
                report(Progress { done, total });
                loaded = done == total;
            }
            if state.phase == Phase::Serving {
                return Ok(self);
            }
            if self.engine.is_finished() {
                let outcome = end(self.engine)?;
                return Err(anyhow!("the engine ended before it served: {outcome:?}"));
            }
        }
    }

    /// Refuse new requests, let running answers end, and wait for that.
    ///
    /// # Errors
    /// Why the engine ended before.
    pub fn finish(self) -> anyhow::Result<()> {
        self.control.drain(Duration::ZERO);
        end(self.engine)?;
        self.clients.finish();
        Ok(())
    }
}

fn end(engine: thread::JoinHandle<Result<Outcome, BackendError>>) -> anyhow::Result<Outcome> {
    let outcome = engine
        .join()
        .map_err(|_| BackendError::Bug("the engine's thread panicked".into()))?;
    Ok(outcome?)
}
