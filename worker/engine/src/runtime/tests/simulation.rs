//! Planner, executor and members without threads: every message is delivered on its own, in any order between members,
//! while requests come and go and eras end.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::fake::{Fake, KV_BLOCKS};
use super::group::{config, greedy};
use super::model::reference;
use crate::backend::Backend;
use crate::mesh::{Abort, Label, Members, Mesh, MeshError, Message, Transfer, Wait};
use crate::runtime::executor::{Executor, LeaderLink};
use crate::runtime::member::link::Incoming;
use crate::runtime::member::steps::{MemberSteps, Taken};
use crate::runtime::planner::Planner;
use crate::runtime::queue::QueueGauge;
use crate::runtime::{Event, FinishReason, GenerationRequest, RankConfig};
use crate::sampling::SamplingParams;
use crate::schedule::SequenceId;
use crate::step::Era;

/// A mesh on which nothing travels.
struct Silent {
    members: Members,
    rank: u32,
    era: Era,
}

struct NoAbort;

impl Abort for NoAbort {
    fn abort(&self) {}
}

impl Mesh for Silent {
    fn members(&self) -> &Members {
        &self.members
    }
    fn rank(&self) -> u32 {
        self.rank
    }
    fn era(&self) -> Era {
        self.era
    }
    fn is_local(&self, _peer: u32) -> bool {
        false
    }
    fn exchange(&mut self, _: Label, _: &mut [Transfer<'_>], _: Wait) -> Result<(), MeshError> {
        Err(MeshError::Aborted)
    }
    fn send_files(&mut self, peer: u32, _: &[BorrowedFd<'_>], _: Instant) -> Result<(), MeshError> {
        Err(MeshError::NotLocal { rank: peer })
    }
    fn receive_files(&mut self, peer: u32, _: usize, _: Instant) -> Result<Vec<OwnedFd>, MeshError> {
        Err(MeshError::NotLocal { rank: peer })
    }
    fn abort_handle(&self) -> Arc<dyn Abort> {
        Arc::new(NoAbort)
    }
}

struct Member {
    backend: Fake,
    steps: MemberSteps,
    incoming: Receiver<Incoming>,
    outgoing: VecDeque<(u64, Message)>,
}

impl Member {
    /// Take one message, or compute when there is none. False when there is nothing to do.
    fn act(&mut self, now: Instant) -> bool {
        match self.incoming.try_recv() {
            Ok(incoming) => {
                let (step, message) = incoming.unwrap();
                match self.steps.take(&mut self.backend, step, message).unwrap() {
                    Taken::Nothing => {}
                    Taken::Answer(answer) => self.outgoing.push_back((step, answer)),
                    Taken::Leave => panic!("nobody leaves here"),
                }
                true
            }
            Err(_) => self.compute(now),
        }
    }

    /// Compute without looking for messages, as one does while they travel.
    fn compute(&mut self, now: Instant) -> bool {
        let can = self.steps.can_advance();
        if let Some((step, output)) = self.steps.advance(&mut self.backend, now).unwrap() {
            self.outgoing.push_back((step, Message::Output(output)));
        }
        can
    }
}

struct Client {
    request: GenerationRequest,
    events: Arc<Mutex<Vec<Event>>>,
}

struct Simulation {
    config: RankConfig,
    planner: Planner,
    queue: Arc<QueueGauge>,
    executor: Executor,
    members: Vec<Member>,
    era: Era,
    clients: Vec<Client>,
    start: Instant,
    ticks: Cell<u64>,
}

/// The members of an era, formed, and the way to them.
fn form(config: &RankConfig, era: Era, now: Instant) -> (Executor, Vec<Member>, u32) {
    let mut links = Vec::new();
    let mut members = Vec::new();
    let mut blocks = u32::MAX;
    for rank in config.members.ranks() {
        let mesh = Box::new(Silent {
            members: config.members.clone(),
            rank: *rank,
            era,
        });
        let mut backend = Fake::solo();
        let spec = config.form_spec(era, config.form_limits());
        blocks = blocks.min(backend.form(&spec, mesh, &mut |_| ()).unwrap().blocks);
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
    for rank in config.members.ranks() {
        executor
            .receive(*rank, 0, Message::Ready { blocks }, now)
            .unwrap();
    }
    (executor, members, blocks)
}

impl Simulation {
    fn new(world: u32, depth: u32, max_sequences: u32, max_batched_tokens: u32) -> Self {
        let config = RankConfig {
            steps_in_flight: depth,
            max_sequences,
            max_batched_tokens,
            ..config(0, world, Duration::from_secs(1 << 30))
        };
        let queue = Arc::new(QueueGauge::new(1000, 1 << 20));
        let mut planner = Planner::new(
            config.limits(KV_BLOCKS),
            depth,
            config.step_target,
            Arc::default(),
            Arc::clone(&queue),
        );
        let (start, era) = (
            Instant::now(),
            Era {
                generation: 1,
                epoch: 1,
            },
        );
        let (executor, members, blocks) = form(&config, era, start);
        planner.enter(era, config.limits(blocks));
        Self {
            config,
            planner,
            queue,
            executor,
            members,
            era,
            clients: Vec::new(),
            start,
            ticks: Cell::new(0),
        }
    }

    /// A clock that goes on by a millisecond whenever somebody looks at it.
    fn now(&self) -> Instant {
        self.ticks.set(self.ticks.get() + 1);
        self.start + Duration::from_millis(self.ticks.get())
    }

    /// A client that goes away after `patience` tokens.
    fn arrive(&mut self, request: GenerationRequest, patience: usize) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let sink = Box::new(move |event: Event| {
            let mut heard = heard.lock().unwrap();
            let token = matches!(event, Event::Token { .. });
            heard.push(event);
            !token || heard.len() <= patience
        });
        let id = SequenceId(self.clients.len() as u64);
        self.queue.enter(request.queued_tokens()).unwrap();
        self.clients.push(Client {
            request: request.clone(),
            events,
        });
        self.planner.submit(id, request, None, sink, self.now());
        self.advance();
    }

    fn cancel(&mut self, pick: usize) {
        if !self.clients.is_empty() {
            let id = SequenceId((pick % self.clients.len()) as u64);
            let now = self.now();
            self.planner.cancel(id, Some(&mut self.executor), now).unwrap();
        }
    }

    fn advance(&mut self) {
        let (ticks, start) = (&self.ticks, self.start);
        let now = || {
            ticks.set(ticks.get() + 1);
            start + Duration::from_millis(ticks.get())
        };
        self.planner.advance(&mut self.executor, now).unwrap();
    }

    /// A member's oldest answer reaches the leader.
    fn deliver(&mut self, rank: usize) -> bool {
        let Some((step, message)) = self.members[rank].outgoing.pop_front() else {
            return false;
        };
        let now = self.now();
        self.executor.receive(rank as u32, step, message, now).unwrap();
        self.advance();
        true
    }

    /// A rank is lost: the next era begins with nothing but the histories.
    fn lose(&mut self) {
        self.planner.leave();
        self.era.epoch += 1;
        let (executor, members, blocks) = form(&self.config, self.era, self.now());
        (self.executor, self.members) = (executor, members);
        self.planner.enter(self.era, self.config.limits(blocks));
        self.advance();
    }

    fn heartbeat(&mut self) {
        if self.planner.is_resting() {
            let now = self.now();
            self.planner.heartbeat(&mut self.executor, now).unwrap();
        }
    }

    fn act(&mut self, rank: usize) -> bool {
        let now = self.now();
        self.members[rank].act(now)
    }

    /// Let everybody do everything until nothing is left to do.
    fn settle(&mut self) {
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
    fn check(&mut self) {
        self.settle();
        assert!(self.planner.is_idle(), "all requests have ended");
        self.heartbeat();
        self.settle();
        assert_eq!(self.planner.scheduler().kv_blocks().0, 0, "no block leaks");
        assert!(self.planner.scheduler().is_idle());
        assert!(self.members.iter().all(|member| member.backend.holds_nothing()));
        assert_eq!(self.queue.waiting(), (0, 0));
        for client in &self.clients {
            client.check();
        }
    }
}

impl Client {
    fn check(&self) {
        let events = self.events.lock().unwrap();
        let Self { request, .. } = self;
        assert!(
            matches!(events.first(), Some(Event::Accepted { .. })),
            "{events:?}"
        );
        let tokens: Vec<u32> = events
            .iter()
            .filter_map(|event| match event {
                Event::Token { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        let right = reference(&request.prompt, &request.sampling, request.max_tokens as usize);
        let stop = right.iter().position(|token| request.stop_tokens.contains(token));
        assert_eq!(
            tokens,
            right[..tokens.len()],
            "no token lost, repeated or reordered"
        );
        assert_eq!(events.len(), tokens.len() + 2, "{events:?}");
        let Some(Event::Finished {
            reason,
            output_tokens,
        }) = events.last()
        else {
            panic!("{events:?}");
        };
        match (reason, stop) {
            (FinishReason::Cancelled, _) => assert!(*output_tokens as usize >= tokens.len()),
            (FinishReason::StopToken(token), Some(at)) => {
                assert_eq!(
                    (tokens.len(), *token, *output_tokens as usize),
                    (at, right[at], at + 1)
                );
            }
            (FinishReason::Length, None) => assert_eq!(tokens.len(), right.len()),
            other => panic!("{other:?}"),
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Arrive {
        prompt: usize,
        output: u32,
        sampling: usize,
        stop: Option<usize>,
        patience: usize,
    },
    Member(usize),
    Compute(usize),
    Deliver(usize),
    Cancel(usize),
    Heartbeat,
    Lose,
}

fn act() -> impl Strategy<Value = Act> {
    let arrive = (
        1_usize..40,
        1_u32..20,
        0_usize..6,
        prop::option::weighted(0.3, 0_usize..20),
        prop_oneof![5 => Just(usize::MAX), 1 => 1_usize..10],
    );
    prop_oneof![
        6 => arrive.prop_map(|(prompt, output, sampling, stop, patience)| Act::Arrive { prompt, output, sampling, stop, patience }),
        60 => (0_usize..3).prop_map(Act::Member),
        20 => (0_usize..3).prop_map(Act::Compute),
        40 => (0_usize..3).prop_map(Act::Deliver),
        2 => any::<usize>().prop_map(Act::Cancel),
        2 => Just(Act::Heartbeat),
        1 => Just(Act::Lose),
    ]
}

fn sampling(kind: usize, seed: u64) -> SamplingParams {
    let greedy = SamplingParams::greedy();
    let warm = SamplingParams {
        temperature: 0.9,
        seed,
        ..greedy.clone()
    };
    match kind {
        0 => greedy,
        1 => warm,
        2 => SamplingParams { top_k: 4, ..warm },
        // Wide, so that full rows are fetched.
        3 => SamplingParams {
            top_p: 0.95,
            temperature: 3.0,
            ..warm
        },
        4 => SamplingParams {
            presence_penalty: 1.5,
            frequency_penalty: 0.5,
            ..warm
        },
        _ => SamplingParams {
            logit_bias: vec![(7, 3.0), (300, -2.0)],
            logprobs: Some(2),
            ..greedy
        },
    }
}

impl Simulation {
    fn take(&mut self, act: Act) {
        let ranks = self.members.len();
        match act {
            Act::Arrive {
                prompt,
                output,
                sampling: kind,
                stop,
                patience,
            } => {
                let number = self.clients.len() as u32;
                let prompt: Vec<u32> = (0..prompt as u32).map(|at| (at * 7 + number) % 512).collect();
                let sampling = sampling(kind, u64::from(number));
                let answer = reference(&prompt, &sampling, output as usize);
                let request = GenerationRequest {
                    sampling,
                    stop_tokens: stop.map(|at| answer[at % answer.len()]).into_iter().collect(),
                    ..greedy(&prompt, output)
                };
                self.arrive(request, patience);
            }
            Act::Member(rank) => {
                self.act(rank % ranks);
            }
            Act::Compute(rank) => {
                let now = self.now();
                self.members[rank % ranks].compute(now);
            }
            Act::Deliver(rank) => {
                self.deliver(rank % ranks);
            }
            Act::Cancel(pick) => self.cancel(pick),
            Act::Heartbeat => self.heartbeat(),
            Act::Lose => self.lose(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn no_token_is_lost_and_no_block_leaks(
        acts in prop::collection::vec(act(), 1..500),
        world in 1_u32..4,
        depth in 1_u32..5,
        max_sequences in 1_u32..6,
        max_batched_tokens in 4_u32..40,
    ) {
        let mut simulation = Simulation::new(world, depth, max_sequences, max_batched_tokens);
        for act in acts {
            simulation.take(act);
        }
        simulation.check();
    }
}

#[test]
fn the_next_step_is_sent_while_one_computes_and_clients_hear_after_the_members() {
    let mut simulation = Simulation::new(1, 2, 4, 16);
    simulation.arrive(greedy(&[1, 2, 3], 5), usize::MAX);
    let sent = |simulation: &Simulation| -> Vec<(u64, Message)> {
        let incoming = &simulation.members[0].incoming;
        incoming.try_iter().map(Result::unwrap).collect()
    };
    let names = |messages: &[(u64, Message)]| -> Vec<(u64, &'static str)> {
        messages
            .iter()
            .map(|(step, message)| (*step, message.name()))
            .collect()
    };
    let both = sent(&simulation);
    assert_eq!(
        names(&both),
        [(1, "Plan"), (2, "Plan")],
        "two steps are in flight at once"
    );
    for (step, message) in both {
        let member = &mut simulation.members[0];
        member.steps.take(&mut member.backend, step, message).unwrap();
    }
    assert!(simulation.act(0), "the first is computed");
    assert!(!simulation.act(0), "the second waits for its token");
    assert!(simulation.deliver(0));
    assert_eq!(
        names(&sent(&simulation)),
        [(1, "Release"), (2, "Late"), (3, "Plan")]
    );
    assert_eq!(simulation.clients[0].events.lock().unwrap().len(), 2);
}
