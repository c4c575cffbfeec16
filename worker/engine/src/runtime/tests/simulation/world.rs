//! A simulated group: its leader, its members, and what may happen to them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::client::{Client, constraint};
use super::member::{Member, Silent};
use crate::backend::{Backend, KvCapacity};
use crate::mesh::{Failure, Inbox, MeshError, Message, Topology};
use crate::runtime::control::RankContext;
use crate::runtime::executor::{Executor, LeaderLink};
use crate::runtime::input::Input;
use crate::runtime::leader::{End, Leader};
use crate::runtime::member::steps::MemberSteps;
use crate::runtime::planner::Planner;
use crate::runtime::queue::QueueGauge;
use crate::runtime::tests::fake::{Fake, KV_BLOCKS};
use crate::runtime::tests::group::config;
use crate::runtime::{Event, GenerationRequest, LoadSnapshot, RankConfig};
use crate::schedule::SequenceId;
use crate::step::Era;

pub(super) struct Simulation {
    leader: Leader<'static>,
    executor: Executor,
    pub(super) members: Vec<Member>,
    /// KV blocks of the smallest rank, now and at the least.
    blocks: u32,
    fewest_blocks: u32,
    pub(super) clients: Vec<Client>,
    /// Eras that ended.
    pub(super) losses: u32,
    /// Whether something happened in this era that ends it.
    is_broken: bool,
    /// What members said in this era and the last one, as far as it may come again.
    said: Vec<(u32, u64, Message)>,
    stale: Vec<(u32, u64, Message)>,
    start: Instant,
    ticks: Cell<u64>,
}

/// What is left of the members' KV blocks when an era ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Everybody goes on as it is.
    All,
    /// This one's process is another one.
    ButOne(usize),
    /// All have so many blocks from here on.
    Blocks(u32),
}

/// The members of an era, formed by `backends`, and the way to them.
fn form(config: &RankConfig, era: Era, backends: Vec<Fake>, now: Instant) -> (Executor, Vec<Member>) {
    let mut links = Vec::new();
    let mut members = Vec::new();
    let mut ready = Vec::new();
    for (rank, mut backend) in config.members.ranks().iter().zip(backends) {
        let mesh = Box::new(Silent {
            members: config.members.clone(),
            rank: *rank,
            era,
        });
        let spec = config.form_spec(era, config.form_limits());
        let KvCapacity { blocks, kept } = backend.form(&spec, mesh, &mut |_| ()).unwrap();
        ready.push((
            *rank,
            Message::Ready {
                blocks,
                kept,
                missing: Vec::new(),
            },
        ));
        let (sender, incoming) = mpsc::channel();
        links.push(LeaderLink::Local(sender));
        members.push(Member {
            backend,
            steps: MemberSteps::default(),
            incoming,
            outgoing: VecDeque::new(),
        });
    }
    let mut executor = Executor::new(era, &config.members, links, config.patience(), now);
    for (rank, message) in ready {
        executor.receive(rank, 0, message, now).unwrap();
    }
    (executor, members)
}

/// A leader that has not formed, as [`crate::runtime::RankRuntime`] makes it.
fn leader(config: RankConfig) -> Leader<'static> {
    // A leader borrows them for as long as its thread lives; a test has some hundred.
    let config: &'static RankConfig = Box::leak(Box::new(config));
    let inbox = Inbox::new(
        config.rank,
        config.members.clone(),
        config.numerics.clone(),
        config.content.clone(),
    );
    let (sender, inputs) = mpsc::channel();
    let context = RankContext::new(Arc::new(inbox), sender.clone());
    let queue = Arc::new(QueueGauge::new(1000, 1 << 20));
    Leader {
        config,
        context: Box::leak(Box::new(context)),
        inputs,
        sender,
        eras: mpsc::channel().0,
        progress: Arc::default(),
        queue: Arc::clone(&queue),
        planner: Planner::new(
            config.limits(KV_BLOCKS),
            config.steps_in_flight,
            config.step_target,
            Arc::default(),
            queue,
            config.prefix(),
        )
        .with_stages(config.members.topology().pipeline)
        .with_speculation(config.speculation),
        last: Era {
            generation: 1,
            epoch: 1,
        },
        backoff: config.backoff.0,
        present: None,
        loss: None,
        lasting_refusals: 0,
        silent: Vec::new(),
        formed_at: None,
    }
}

impl Simulation {
    pub(super) fn new(world: u32, depth: u32, max_sequences: u32, max_batched_tokens: u32) -> Self {
        Self::staged(Topology::tensor(world), depth, max_sequences, max_batched_tokens)
    }

    pub(super) fn staged(
        topology: Topology,
        depth: u32,
        max_sequences: u32,
        max_batched_tokens: u32,
    ) -> Self {
        Self::with(RankConfig {
            members: topology.into(),
            steps_in_flight: depth,
            max_sequences,
            max_batched_tokens,
            ..config(0, 1, Duration::from_secs(1 << 30))
        })
    }

    pub(super) fn with(config: RankConfig) -> Self {
        let backends = config.members.ranks().iter().map(|_| Fake::solo(KV_BLOCKS));
        let (start, backends) = (Instant::now(), backends.collect());
        let leader = leader(config);
        let (executor, members) = form(leader.config, leader.last, backends, start);
        let mut simulation = Self {
            leader,
            executor,
            members,
            blocks: KV_BLOCKS,
            fewest_blocks: KV_BLOCKS,
            clients: Vec::new(),
            losses: 0,
            is_broken: false,
            said: Vec::new(),
            stale: Vec::new(),
            start,
            ticks: Cell::new(0),
        };
        simulation.enter();
        simulation
    }

    /// A clock that goes on by a millisecond whenever somebody looks at it.
    pub(super) fn now(&self) -> Instant {
        self.ticks.set(self.ticks.get() + 1);
        self.start + Duration::from_millis(self.ticks.get())
    }

    fn send(&self, input: Input) {
        self.leader.sender.send(input).unwrap();
    }

    /// The leader takes all that was sent to it. Whatever ends the era is followed by the next one.
    pub(super) fn take_inputs(&mut self, left: Left) {
        let taken = self.leader.take_inputs(Duration::ZERO, Some(&mut self.executor));
        match taken {
            Ok(()) => {
                assert!(!self.is_broken, "the era goes on without a member");
                self.advance();
            }
            Err(End::Era(error)) => {
                assert!(self.is_broken, "nothing was lost in this era: {error}");
                self.lose(left);
            }
            Err(_) => panic!("only eras end here"),
        }
    }

    /// A client that goes away at a token when it has heard `patience` events before.
    pub(super) fn arrive(&mut self, request: GenerationRequest, patience: usize) {
        self.arrive_listening(request, patience, false, |_| ());
    }

    /// The same, with tokens that are restricted.
    pub(super) fn arrive_constrained(&mut self, request: GenerationRequest, patience: usize) {
        self.arrive_listening(request, patience, true, |_| ());
    }

    /// The same, with something that is called with every event when the client hears it.
    pub(super) fn arrive_listening(
        &mut self,
        request: GenerationRequest,
        patience: usize,
        constrained: bool,
        mut listen: impl FnMut(&Event) + Send + 'static,
    ) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let sink = Box::new(move |event: Event| {
            listen(&event);
            let mut heard = heard.lock().unwrap();
            let token = matches!(event, Event::Token { .. });
            heard.push(event);
            !token || heard.len() <= patience
        });
        let id = SequenceId(self.clients.len() as u64);
        self.leader.queue.enter(request.queued_tokens()).unwrap();
        self.clients.push(Client {
            request: request.clone(),
            constrained,
            patience,
            cancelled: false,
            events,
        });
        self.send(Input::Submit {
            id,
            request,
            constraint: constraint(constrained),
            sink,
            at: self.now(),
        });
    }

    pub(super) fn cancel(&mut self, pick: usize) {
        if !self.clients.is_empty() {
            let client = pick % self.clients.len();
            self.clients[client].cancelled = true;
            self.send(Input::Cancel(SequenceId(client as u64)));
        }
    }

    fn advance(&mut self) {
        let (ticks, start) = (&self.ticks, self.start);
        let now = || {
            ticks.set(ticks.get() + 1);
            start + Duration::from_millis(ticks.get())
        };
        self.leader.planner.advance(&mut self.executor, now).unwrap();
    }

    /// A member's oldest answer is on its way to the leader.
    pub(super) fn answer(&mut self, rank: usize) -> bool {
        let Some((step, message)) = self.members[rank].outgoing.pop_front() else {
            return false;
        };
        let rank = rank as u32;
        self.said.push((rank, step, message.clone()));
        self.send(Input::Member {
            era: self.leader.last,
            rank,
            step,
            message,
        });
        true
    }

    /// A member's oldest answer reaches the leader.
    pub(super) fn deliver(&mut self, rank: usize) -> bool {
        let answered = self.answer(rank);
        self.take_inputs(Left::All);
        answered
    }

    /// Something of the last era reaches the leader in this one: what a member said, or that a link has ended.
    pub(super) fn replay(&mut self, pick: usize) {
        let mut era = self.leader.last;
        let before = era.epoch - 1;
        if before == 0 {
            return;
        }
        era.epoch = before;
        match self.stale.get(pick % (self.stale.len() + 1)).cloned() {
            Some((rank, step, message)) => self.send(Input::Member {
                era,
                rank,
                step,
                message,
            }),
            None => self.send_lost(era, pick % self.members.len()),
        }
    }

    /// A member fails in the middle of a step, if it has one: it has computed a part of it, and tells the leader that it
    /// cannot go on instead of its answer.
    pub(super) fn fail(&mut self, rank: usize) {
        let now = self.now();
        let member = &mut self.members[rank];
        let answers = member.outgoing.len();
        member.compute(now);
        member.outgoing.truncate(answers);
        let lost = MeshError::PeerLost {
            rank: rank as u32,
            reason: "it fails".into(),
        };
        member
            .outgoing
            .push_back((0, Message::Failed(Failure::Lost(lost))));
        self.is_broken = true;
        while self.answer(rank) {}
    }

    /// The link to a member ends.
    pub(super) fn cut(&mut self, rank: usize) {
        self.is_broken = true;
        self.send_lost(self.leader.last, rank);
    }

    fn send_lost(&self, era: Era, rank: usize) {
        let error = MeshError::PeerLost {
            rank: rank as u32,
            reason: "the connection was closed".into(),
        };
        self.send(Input::Lost {
            era,
            error,
            heard_all: true,
        });
    }

    /// The era ends: the next one begins with the histories, and with those KV blocks that everybody has kept.
    fn lose(&mut self, left: Left) {
        self.losses += 1;
        self.is_broken = false;
        // What was sent and taken, and what was still on its way.
        self.stale = std::mem::take(&mut self.said);
        for (rank, member) in (0..).zip(&mut self.members) {
            let on_its_way = member.outgoing.drain(..);
            self.stale
                .extend(on_its_way.map(|(step, message)| (rank, step, message)));
        }
        self.leader.planner.leave();
        self.leader.planner.charge_loss("it fails");
        self.leader.last.epoch += 1;
        if let Left::Blocks(blocks) = left {
            self.blocks = blocks;
            self.fewest_blocks = self.fewest_blocks.min(blocks);
        }
        let members = std::mem::take(&mut self.members).into_iter().enumerate();
        let backends = members.map(|(rank, member)| {
            let mut backend = match left {
                Left::ButOne(replaced) if replaced == rank => Fake::solo(self.blocks),
                _ => member.backend,
            };
            backend.dissolve();
            backend.set_blocks(self.blocks);
            backend
        });
        let backends = backends.collect();
        (self.executor, self.members) = form(self.leader.config, self.leader.last, backends, self.now());
        self.enter();
    }

    fn enter(&mut self) {
        let KvCapacity { blocks, kept } = self.executor.capacity().unwrap();
        let limits = self.leader.config.limits(blocks);
        self.leader.planner.enter(self.leader.last, limits, kept);
        self.advance();
    }

    pub(super) fn heartbeat(&mut self) {
        if self.leader.planner.is_resting() {
            let now = self.now();
            self.leader.planner.heartbeat(&mut self.executor, now).unwrap();
        }
    }

    pub(super) fn act(&mut self, rank: usize) -> bool {
        let now = self.now();
        self.members[rank].act(now)
    }

    /// Let everybody do everything until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..200_000 {
            let mut moved = false;
            for rank in 0..self.members.len() {
                moved |= self.act(rank);
                moved |= self.deliver(rank);
            }
            if !moved {
                return;
            }
        }
        panic!("does not come to rest");
    }

    /// Every client has got what one rank alone would have said, as far as it wanted, and nothing is held any more.
    pub(super) fn check(&mut self) {
        self.take_inputs(Left::All);
        self.settle();
        assert!(self.leader.planner.is_idle(), "all requests have ended");
        self.heartbeat();
        self.settle();
        let scheduler = self.leader.planner.scheduler();
        assert_eq!(scheduler.kv_blocks().0, 0, "no block leaks");
        assert!(scheduler.is_idle());
        assert!(self.members.iter().all(|member| member.backend.holds_nothing()));
        assert_eq!(self.leader.queue.waiting(), (0, 0));
        let longest = self.leader.config.limits(self.fewest_blocks).longest();
        for client in &self.clients {
            client.check(longest, self.losses);
        }
    }

    /// What the leader counts.
    pub(super) fn load(&self) -> LoadSnapshot {
        self.leader.planner.load()
    }

    /// Full rows of logits that were asked of all members.
    pub(super) fn full_rows(&self) -> u32 {
        let members = self.members.iter();
        members.map(|member| member.backend.faults.full_rows()).sum()
    }

    /// Tokens of a client's prompt that it was told to be cached.
    pub(super) fn cached_tokens(&self, client: usize) -> u32 {
        let events = self.clients[client].events.lock().unwrap();
        let started = events.iter().find_map(|event| match event {
            Event::Started { cached_tokens } => Some(*cached_tokens),
            _ => None,
        });
        started.unwrap()
    }
}
