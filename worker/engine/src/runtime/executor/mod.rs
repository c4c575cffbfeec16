//! The leader's way to all members of an era: plans and late values go out, answers come back, and a member that stands
//! still is found.
//!
//! | module | what it is |
//! |---|---|
//! | [`link`] | the leader's end of the link to one member |
//! | [`answers`] | what the members have answered to one step |
//! | [`stall`] | which member holds the others up, and since when nothing has moved |

mod answers;
mod link;
mod stall;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use answers::{Answering, StepAnswers};
pub(super) use link::{LeaderLink, Outgoing};
use stall::Movement;

use crate::adapters::AdapterSource;
use crate::backend::KvCapacity;
use crate::form::FormLimits;
use crate::mesh::{Members, MeshError, Message};
use crate::step::{Era, Late, LogitShard, Plan, StepOutput};

/// How long members may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// While they compute, and while messages to them wait.
    pub(super) stall: Duration,
    /// While they form.
    pub(super) form: Duration,
    /// A member that computes says that it moves at least this often.
    pub(super) progress: Duration,
}

/// See the module's description.
pub(super) struct Executor {
    era: Era,
    /// In rank order.
    members: Vec<Member>,
    /// The first member of the last stage. It and those behind it have the head, so logits are theirs.
    first_head: usize,
    /// Submitted and not released, oldest first.
    steps: VecDeque<StepAnswers>,
    /// Steps whose release has not been told yet; that travels with the next message to all.
    released: Vec<u64>,
    patience: Patience,
    movement: Movement,
    spoke_at: Instant,
}

/// What the leader knows of a member.
struct Member {
    rank: u32,
    stage: u32,
    link: LeaderLink,
    /// Its KV blocks, once it is ready.
    capacity: Option<KvCapacity>,
    /// What it says that it does while it forms.
    forming: Option<String>,
    /// Adapters that it could not read when it formed, and why.
    missing: Vec<(u32, String)>,
}

impl Executor {
    /// All links of an era, in rank order, to the ranks of `members`.
    pub(super) fn new(
        era: Era,
        members: &Members,
        links: Vec<LeaderLink>,
        patience: Patience,
        now: Instant,
    ) -> Self {
        let ranks = members.ranks();
        let member = |(rank, link): (&u32, LeaderLink)| Member {
            rank: *rank,
            stage: members.topology().stage(*rank),
            link,
            capacity: None,
            forming: None,
            missing: Vec::new(),
        };
        Self {
            era,
            first_head: ranks.len() - members.last_stage().len(),
            movement: Movement::new(ranks.to_vec(), now),
            members: ranks.iter().zip(links).map(member).collect(),
            steps: VecDeque::new(),
            released: Vec::new(),
            patience,
            spoke_at: now,
        }
    }

    /// Tell all members to form.
    pub(super) fn form(
        &mut self,
        limits: FormLimits,
        adapters: Vec<AdapterSource>,
        now: Instant,
    ) -> Result<(), MeshError> {
        self.send(vec![(0, Message::Setup { limits, adapters })], now)
    }

    /// Tell all members to read an adapter.
    pub(super) fn load_adapter(&mut self, source: AdapterSource, now: Instant) -> Result<(), MeshError> {
        self.send(vec![(0, Message::LoadAdapter(source))], now)
    }

    /// Tell all members to forget an adapter.
    pub(super) fn unload_adapter(&mut self, number: u32, now: Instant) -> Result<(), MeshError> {
        self.send(vec![(0, Message::UnloadAdapter(number))], now)
    }

    /// Adapters that some member could not read when it formed, by number, and why.
    pub(super) fn missing_adapters(&self) -> BTreeMap<u32, String> {
        let of_member = |member: &Member| {
            let rank = member.rank;
            let missing = member.missing.clone().into_iter();
            missing.map(move |(number, why)| (number, format!("rank {rank}: {why}")))
        };
        self.members.iter().flat_map(of_member).collect()
    }

    /// KV blocks that every member has, once all are ready, and what all of them have kept.
    pub(super) fn capacity(&self) -> Option<KvCapacity> {
        let all: Option<Vec<KvCapacity>> = self.members.iter().map(|member| member.capacity).collect();
        all?.into_iter().reduce(|all, member| KvCapacity {
            blocks: all.blocks.min(member.blocks),
            kept: all.kept.filter(|kept| member.kept == Some(*kept)),
        })
    }

    /// Let all members execute a plan.
    pub(super) fn submit(&mut self, plan: Plan, now: Instant) -> Result<(), MeshError> {
        if self.steps.iter().all(StepAnswers::is_complete) {
            // No answer was due until now, so the silence before this does not count as a stall.
            self.movement.moved(now);
        }
        self.steps
            .push_back(StepAnswers::new(plan.step, self.members.len(), self.first_head));
        self.send(vec![(plan.step, Message::Plan(plan))], now)
    }

    /// Give submitted steps their late values.
    pub(super) fn late(&mut self, values: Vec<(u64, Late)>, now: Instant) -> Result<(), MeshError> {
        let messages = values.into_iter().map(|(step, late)| (step, Message::Late(late)));
        let messages: Vec<_> = messages.collect();
        if messages.is_empty() {
            return Ok(());
        }
        self.send(messages, now)
    }

    /// The answers of the last stage's ranks to a step that have come since the last call, with their ranks.
    pub(super) fn outputs(&mut self, step: u64) -> Vec<(u32, StepOutput)> {
        self.step(step).map(StepAnswers::take_outputs).unwrap_or_default()
    }

    /// How many members the last stage has.
    pub(super) fn heads(&self) -> usize {
        self.members.len() - self.first_head
    }

    /// Whether every member has answered to a step.
    pub(super) fn all_answered(&mut self, step: u64) -> bool {
        self.step(step).is_some_and(|answers| answers.all_answered())
    }

    /// Ask the last stage's ranks for their parts of the logits of a position.
    pub(super) fn fetch(&mut self, step: u64, row: u32, offset: u32, now: Instant) -> Result<(), MeshError> {
        if let Some(answers) = self.step(step) {
            answers.expect_row((row, offset));
        }
        self.movement.moved(now);
        let outgoing = Outgoing::new(self.era, vec![(step, Message::Fetch { row, offset })]);
        for member in self.members.iter().skip(self.first_head).rev() {
            member.link.send(&outgoing)?;
        }
        Ok(())
    }

    /// The parts of the last stage's ranks, in rank order, once all are there. Given once.
    pub(super) fn shards(&mut self, step: u64, row: u32, offset: u32) -> Option<Vec<LogitShard>> {
        self.step(step)?.take_row((row, offset))
    }

    /// Nothing of the oldest step will be fetched any more. Members are told with the next message to all.
    pub(super) fn release(&mut self, step: u64) {
        self.steps.retain(|answers| answers.number != step);
        self.released.push(step);
    }

    /// The group is drained: members end. A member that cannot be reached any more is ended by its pod's supervisor.
    pub(super) fn leave(&mut self, now: Instant) {
        let _ = self.send(vec![(0, Message::Leave)], now);
        for member in &self.members {
            member.link.flush(now + self.patience.stall);
        }
    }

    /// A member says something.
    pub(super) fn receive(
        &mut self,
        rank: u32,
        step: u64,
        message: Message,
        now: Instant,
    ) -> Result<(), MeshError> {
        let mut members = self.members.iter_mut().enumerate();
        let Some((index, member)) = members.find(|(_, member)| member.rank == rank) else {
            return Err(message.out_of_place(rank, step));
        };
        let from = Answering { rank, index };
        self.movement.moved(now);
        let answers = self.steps.iter_mut().find(|answers| answers.number == step);
        match (message, answers) {
            (Message::Forming(what), _) => {
                member.forming = Some(what);
                Ok(())
            }
            (
                Message::Ready {
                    blocks,
                    kept,
                    missing,
                },
                _,
            ) if member.capacity.is_none() => {
                member.capacity = Some(KvCapacity { blocks, kept });
                member.missing = missing;
                Ok(())
            }
            (Message::Progress { layers }, _) => {
                self.movement.progressed(index, layers);
                Ok(())
            }
            (Message::Output(output), Some(answers)) => answers.output(from, output),
            (Message::Row { row, offset, shard }, Some(answers)) => answers.row(from, (row, offset), shard),
            (Message::Failed(failure), _) => Err(failure.blame(rank)),
            (message, _) => Err(message.out_of_place(rank, step)),
        }
    }

    /// What the first rank that has not formed yet says that it does.
    pub(super) fn forming(&self) -> Option<String> {
        let member = self.members.iter().find(|member| member.capacity.is_none())?;
        let what = member.forming.as_ref()?;
        Some(format!("rank {}: {what}", member.rank))
    }

    /// Say that the leader is there, where it was silent for a while, and look for a member that stands still.
    pub(super) fn check(&mut self, now: Instant) -> Result<(), MeshError> {
        if now.duration_since(self.spoke_at) >= self.patience.progress {
            self.send(vec![(0, Message::Alive)], now)?;
        }
        let (owing, limit) = self.owing();
        self.movement.check(&owing, limit, self.patience.stall, now)
    }

    /// When [`Self::check`] is to be called at the latest.
    pub(super) fn check_at(&self) -> Instant {
        self.spoke_at + self.patience.progress
    }

    /// The members whose answers are due, and how long nothing may move then.
    fn owing(&self) -> (Vec<usize>, Duration) {
        let members = self.members.iter().enumerate();
        let forming = members.filter(|(_, member)| member.capacity.is_none());
        let forming: Vec<usize> = forming.map(|(index, _)| index).collect();
        if !forming.is_empty() {
            return (forming, self.patience.form);
        }
        let owing = self.steps.iter().find(|answers| !answers.is_complete());
        // A member that moves says so only now and then, and the members themselves find a stalled peer a little sooner
        // and know better who it is.
        let limit = self.patience.stall + self.patience.progress;
        let mut missing = owing.map(StepAnswers::missing).unwrap_or_default();
        // Later stages wait for what the first of these passes on.
        let stage_of = |index: &usize| self.members.get(*index).map(|member| member.stage);
        let stage = missing.first().and_then(stage_of);
        missing.retain(|index| stage_of(index) == stage);
        (missing, limit)
    }

    #[cfg(test)]
    fn all_ready(&mut self) {
        for member in &mut self.members {
            member.capacity = Some(KvCapacity {
                blocks: 1,
                kept: None,
            });
        }
    }

    fn step(&mut self, step: u64) -> Option<&mut StepAnswers> {
        self.steps.iter_mut().find(|answers| answers.number == step)
    }

    fn send(&mut self, messages: Vec<(u64, Message)>, now: Instant) -> Result<(), MeshError> {
        let released = self.released.drain(..).map(|step| (step, Message::Release));
        let outgoing = Outgoing::new(self.era, released.chain(messages).collect());
        self.spoke_at = now;
        // This rank's own compute last: it would take the processor that the others' messages need.
        for member in self.members.iter().rev() {
            member.link.send(&outgoing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::mesh::Topology;
    use crate::step::BlockDeltas;

    /// The last stage has computed less than all others, since it waits for them: the first one that owes an answer is to blame.
    #[test]
    fn the_first_stage_that_owes_an_answer_holds_the_others_up() {
        let topology = Topology {
            tensor: 2,
            pipeline: 2,
        };
        let (start, stall) = (Instant::now(), Duration::from_secs(30));
        let patience = Patience {
            stall,
            form: stall,
            progress: stall / 4,
        };
        let (links, _incoming): (Vec<_>, Vec<_>) = (0..4)
            .map(|_| mpsc::channel())
            .map(|(sender, incoming)| (LeaderLink::Local(sender), incoming))
            .unzip();
        let mut executor = Executor::new(Era::default(), &topology.into(), links, patience, start);
        executor.all_ready();
        let plan = Plan {
            era: Era::default(),
            step: 1,
            rows: Vec::new(),
            blocks: BlockDeltas::default(),
            late_tokens: 0,
            late_sampling: false,
            state_hash: 0,
        };
        executor.submit(plan, start).unwrap();
        for (rank, layers) in [(0, 9), (1, 7)] {
            executor
                .receive(rank, 0, Message::Progress { layers }, start)
                .unwrap();
        }
        let blamed = |executor: &mut Executor| match executor.check(start + stall * 2) {
            Err(MeshError::Deadline { rank, .. }) => rank,
            other => panic!("{other:?}"),
        };
        assert_eq!(blamed(&mut executor), 1);
        let mut answer = |rank| {
            let output = Message::Output(StepOutput::default());
            executor.receive(rank, 1, output, start).unwrap();
        };
        answer(1);
        answer(0);
        executor
            .receive(2, 0, Message::Progress { layers: 1 }, start)
            .unwrap();
        assert_eq!(blamed(&mut executor), 3);
    }
}
