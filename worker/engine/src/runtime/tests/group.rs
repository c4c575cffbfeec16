//! Ranks in threads.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

use super::fake::Fake;
use super::faults_of_fake::Faults;
use crate::backend::BackendError;
use crate::mesh::{GroupKey, Members, Membership, Topology};
use crate::runtime::{
    EngineHandle, Event, FinishReason, GenerationRequest, Outcome, RankConfig, RankControl, RankRuntime,
    RankState, Sharing, Submission,
};
use crate::sampling::SamplingParams;

/// Far more than anything here takes; reached only by a bug.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) struct Rank {
    rank: u32,
    pub(super) control: RankControl,
    pub(super) engine: EngineHandle,
    pub(super) faults: Arc<Faults>,
    pub(super) address: SocketAddr,
    thread: Option<JoinHandle<Result<Outcome, BackendError>>>,
}

impl Rank {
    /// A rank of a group of `world`.
    pub(super) fn start(rank: u32, world: u32, stall: Duration) -> Self {
        Self::start_with(config(rank, world, stall), Arc::default())
    }

    pub(super) fn start_with(config: RankConfig, faults: Arc<Faults>) -> Self {
        let patience = config.stall_timeout;
        Self::start_patient(config, faults, patience)
    }

    /// One whose exchanges with peers may take `patience`.
    pub(super) fn start_patient(config: RankConfig, faults: Arc<Faults>, patience: Duration) -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let rank = config.rank;
        let backend = Fake::new(Arc::clone(&faults), patience);
        let runtime = RankRuntime::new(backend, config, socket).unwrap();
        let (control, engine, address) = (runtime.control(), runtime.engine(), runtime.address());
        let thread = std::thread::spawn(move || runtime.run());
        Self {
            rank,
            control,
            engine,
            faults,
            address,
            thread: Some(thread),
        }
    }

    pub(super) fn wait_for(&self, what: impl Fn(&RankState) -> bool) -> RankState {
        self.control
            .watch()
            .wait_for(LONG, what)
            .unwrap_or_else(|| panic!("stays {:?}", self.control.state()))
    }

    pub(super) fn outcome(self) -> Outcome {
        self.ended().unwrap()
    }

    pub(super) fn ended(mut self) -> Result<Outcome, BackendError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

pub(super) fn config(rank: u32, world: u32, stall: Duration) -> RankConfig {
    RankConfig {
        max_sequences: 4,
        max_batched_tokens: 16,
        block_size: 4,
        stall_timeout: stall,
        form_timeout: LONG,
        dial_timeout: LONG,
        heartbeat: Duration::from_millis(20),
        ..RankConfig::new(rank, Topology::tensor(world).into(), 90, "test-v1", "tiny")
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.faults.stall(false);
        self.control.stop();
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap().unwrap();
        }
    }
}

pub(super) struct Group {
    pub(super) ranks: Vec<Rank>,
    pub(super) lost: Vec<u32>,
    pub(super) generation: u64,
    pub(super) key: GroupKey,
}

impl Group {
    pub(super) fn start(world: u32) -> Self {
        Self::with_stall(world, LONG)
    }

    pub(super) fn with_stall(world: u32, stall: Duration) -> Self {
        Self::of(world, |rank| config(rank, world, stall))
    }

    pub(super) fn of(world: u32, config: impl Fn(u32) -> RankConfig) -> Self {
        Self::of_members(&Topology::tensor(world).into(), config)
    }

    /// A group that does without some ranks.
    pub(super) fn of_members(members: &Members, config: impl Fn(u32) -> RankConfig) -> Self {
        let start = |rank: &u32| {
            let members = members.clone();
            Rank::start_with(
                RankConfig {
                    members,
                    ..config(*rank)
                },
                Arc::default(),
            )
        };
        let mut group = Self {
            ranks: members.ranks().iter().map(start).collect(),
            lost: members.lost().to_vec(),
            generation: 0,
            key: GroupKey::random().unwrap(),
        };
        group.form();
        group
    }

    pub(super) fn membership(&self) -> Membership {
        Membership {
            group_uid: "group".into(),
            generation: self.generation,
            lost: self.lost.clone(),
            addresses: self.ranks.iter().map(|rank| (rank.rank, rank.address)).collect(),
            key: self.key.clone(),
        }
    }

    /// The next generation, with the present members.
    pub(super) fn form(&mut self) {
        self.generation += 1;
        self.key = GroupKey::random().unwrap();
        for rank in &self.ranks {
            assert_eq!(rank.control.form(self.membership()), Ok(true));
        }
    }

    pub(super) fn leader(&self) -> &Rank {
        &self.ranks[0]
    }
}

/// Events of a request in step that may be there before the test reads them; far fewer than such a request has.
const AHEAD: usize = 16;

/// Submit a request that keeps step with the test: its leader waits before it goes on further than the test reads, so that the
/// answer is not finished, however slow the machine, when the test disturbs the group in the middle of it. A test that waits for
/// the leader before it reads on leaves the reading to [`read_on`].
pub(super) fn in_step(engine: &EngineHandle, request: GenerationRequest) -> (Submission, Receiver<Event>) {
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    let sink = Box::new(move |event| sender.send(event).is_ok());
    (engine.submit(request, sink).unwrap(), receiver)
}

/// [`rest`] in another thread.
pub(super) fn read_on(events: Receiver<Event>) -> JoinHandle<(Vec<u32>, FinishReason)> {
    std::thread::spawn(move || rest(&events))
}

pub(super) fn greedy(prompt: &[u32], max_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.to_vec(),
        resume: Vec::new(),
        max_tokens,
        open_ended: false,
        stop_tokens: Vec::new(),
        sampling: SamplingParams::greedy(),
        sharing: Sharing::default(),
        prompt_logprobs: None,
        priority: 0,
        pooling: None,
        adapter: None,
    }
}

pub(super) fn token(events: &Receiver<Event>) -> u32 {
    loop {
        match events.recv_timeout(LONG).unwrap() {
            Event::Started { .. } => {}
            Event::Token { id, .. } => return id,
            other => panic!("{other:?} instead of a token"),
        }
    }
}

/// All tokens up to the end, and how that came.
pub(super) fn rest(events: &Receiver<Event>) -> (Vec<u32>, FinishReason) {
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(LONG).unwrap() {
            Event::Accepted { .. } | Event::Started { .. } | Event::Scored(_) => {}
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished { reason, .. } => {
                assert!(events.recv_timeout(LONG).is_err(), "nothing follows the end");
                return (tokens, reason);
            }
            other => panic!("{other:?}"),
        }
    }
}
