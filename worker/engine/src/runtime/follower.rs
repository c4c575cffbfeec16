//! The steps of every rank but the first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compute::compute;
use super::config::{RankConfig, Wrap};
use super::control::Shared;
use super::state::{Outcome, Phase};
use crate::backend::{Backend, BackendError, Ticket};
use crate::collective::{Abort, CollectiveError};
use crate::mesh::dial::dial;
use crate::mesh::hello::{Identity, LinkKind};
use crate::mesh::{ControlLink, DataLink, EraAbort, Membership, Message, TcpCollective};
use crate::step::Era;

/// How long a look at the peers' state may be old while links are missing.
const LOOK: Duration = Duration::from_millis(50);

pub(super) struct Follower<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) wrap: &'a Wrap<B>,
    pub(super) config: &'a RankConfig,
    pub(super) shared: &'a Shared,
}

struct Links {
    plan: Option<ControlLink>,
    data: Vec<DataLink>,
}

impl<B: Backend> Follower<'_, B> {
    /// Follow until stopped, or until rank 0 has left and this rank drains: a rank that is to stay keeps its weights for
    /// the next leader.
    pub(super) fn run(mut self) -> Outcome {
        let mut over = Era::default();
        let mut leaderless = false;
        loop {
            let (membership, era) = match self.next_era(over, leaderless) {
                Ok(next) => next,
                Err(outcome) => return outcome,
            };
            let abort = Arc::new(EraAbort::default());
            self.shared.inbox.enter(era, Arc::clone(&abort));
            let ended = self.one_era(&membership, era, &abort);
            leaderless = ended.is_ok();
            let error = ended.err().unwrap_or_else(|| {
                let (rank, reason) = (0, "it was told to stop".into());
                CollectiveError::PeerLost { rank, reason }.into()
            });
            abort.abort();
            self.backend.dissolve();
            over = era;
            tracing::warn!(?era, "the era ended: {error}");
            self.shared.state.lost(&error);
        }
    }

    /// Wait until rank 0 announces an era after `over`. An outcome when there is none to wait for: the rank is stopped,
    /// or it drains and rank 0 has left.
    fn next_era(&self, over: Era, leaderless: bool) -> Result<(Arc<Membership>, Era), Outcome> {
        let inbox = &self.shared.inbox;
        loop {
            if self.shared.is_stopped() {
                return Err(Outcome::Stopped);
            }
            if leaderless && self.shared.is_draining() {
                return Err(Outcome::Left);
            }
            let latest = inbox.latest();
            match inbox.membership() {
                Some(membership) if latest.epoch > 0 && latest > over => return Ok((membership, latest)),
                Some(_) if over == Era::default() => self.shared.state.explain("waits for rank 0 to connect"),
                Some(_) => {}
                None => self
                    .shared
                    .state
                    .explain("waits to be told the members of its group"),
            }
            inbox.wait_for_era(over, Duration::from_secs(1));
        }
    }

    /// Ends well when rank 0 says that it leaves.
    fn one_era(
        &mut self,
        membership: &Membership,
        era: Era,
        abort: &Arc<EraAbort>,
    ) -> Result<(), BackendError> {
        let Links { plan, data } = self.connect(membership, era, abort)?;
        let Some(mut plan) = plan else {
            return Err(CollectiveError::Aborted.into());
        };
        let ended = self
            .form(membership, era, &mut plan, data, abort)
            .and_then(|()| self.serve(&mut plan));
        if let Err(error) = &ended
            && !abort.is_aborted()
        {
            // So that the leader knows more than that a connection is gone.
            let _ = plan.send(
                0,
                &Message::Failed {
                    reason: error.to_string(),
                },
                LOOK,
            );
        }
        ended
    }

    /// Collect the links of an era: rank 0's two, and one to each other rank.
    fn connect(
        &self,
        membership: &Membership,
        era: Era,
        abort: &Arc<EraAbort>,
    ) -> Result<Links, BackendError> {
        let rank = self.config.rank;
        let world = u32::try_from(membership.members.len()).unwrap_or(u32::MAX);
        let identity = Identity {
            group_uid: membership.group_uid.clone(),
            rank,
            world,
            numerics: self.config.numerics.clone(),
            model: self.config.model.clone(),
        };
        let lost = |rank, reason: String| CollectiveError::PeerLost { rank, reason };
        let mut links = Links {
            plan: None,
            data: Vec::new(),
        };
        let mut dial_at = Instant::now();
        loop {
            while let Some(accepted) = self.shared.inbox.take(era) {
                abort
                    .watch(&accepted.stream)
                    .map_err(|error| lost(accepted.from, error.to_string()))?;
                match accepted.link {
                    LinkKind::Plan => {
                        links.plan = Some(ControlLink::new(accepted.stream, 0, era, Arc::clone(abort)));
                    }
                    LinkKind::Data => links.data.push(DataLink::new(accepted.stream, accepted.from)),
                }
            }
            let missing = |links: &Links, peer: u32| !links.data.iter().any(|link| link.peer() == peer);
            if Instant::now() >= dial_at {
                for peer in rank + 1..world {
                    if missing(&links, peer) {
                        let hello = identity.hello(era, peer, LinkKind::Data);
                        match dial(
                            membership.members[peer as usize],
                            &hello,
                            self.config.dial_timeout,
                        ) {
                            Ok(stream) => {
                                let link = DataLink::new(stream, peer);
                                link.watch(abort).map_err(|error| lost(peer, error.to_string()))?;
                                links.data.push(link);
                            }
                            Err(error) => self.shared.state.explain(&error.to_string()),
                        }
                    }
                    if abort.is_aborted() {
                        return Err(CollectiveError::Aborted.into());
                    }
                }
                dial_at = Instant::now() + LOOK;
            }
            if links.plan.is_some() && links.data.len() + 1 == world as usize {
                return Ok(links);
            }
            if links.plan.as_ref().is_some_and(ControlLink::is_closed) {
                return Err(lost(0, "it closed the connection before the group was complete".into()).into());
            }
            if abort.is_aborted() || self.shared.is_stopped() {
                return Err(CollectiveError::Aborted.into());
            }
            self.shared.inbox.wait_for_link(era, LOOK);
        }
    }

    fn form(
        &mut self,
        membership: &Membership,
        era: Era,
        plan: &mut ControlLink,
        data: Vec<DataLink>,
        abort: &Arc<EraAbort>,
    ) -> Result<(), BackendError> {
        let world = u32::try_from(membership.members.len()).unwrap_or(u32::MAX);
        // Rank 0 may still be connecting others; when it goes, the link or a later era says so.
        let setup = match plan.receive(self.config.form_timeout)? {
            (_, Message::Setup(setup)) => setup,
            (step, message) => return Err(plan.unexpected(step, &message).into()),
        };
        self.shared.state.enter_era(era);
        self.shared.state.phase(Phase::Warming, "");
        let collective = TcpCollective::new(
            self.config.rank,
            world,
            era,
            data,
            Arc::clone(abort),
            self.config.waits(),
        )?;
        let capacity = self
            .backend
            .form(&self.config.form_spec(era, setup), (self.wrap)(collective))?;
        self.shared
            .state
            .update(|state| state.kv_blocks = capacity.blocks);
        Ok(plan.send(
            0,
            &Message::Ready {
                blocks: capacity.blocks,
            },
            self.config.stall_timeout,
        )?)
    }

    fn serve(&mut self, link: &mut ControlLink) -> Result<(), BackendError> {
        // The first plan waits for the slowest rank to form.
        let mut wait = self.config.form_timeout;
        let mut last: Option<(u64, Ticket)> = None;
        loop {
            match link.receive(wait)? {
                (step, Message::Plan(plan))
                    if step == last.map_or(0, |(step, _)| step) + 1 && step == plan.step =>
                {
                    if let Some((_, ticket)) = last {
                        self.backend.release(ticket);
                    }
                    let late = match link.receive(self.config.stall_timeout)? {
                        (at, Message::Late(late)) if at == step => late,
                        (at, message) => return Err(link.unexpected(at, &message).into()),
                    };
                    let (ticket, output) = compute(self.backend, self.shared, self.config, &plan, &late)?;
                    link.send(step, &Message::Output(output), self.config.stall_timeout)?;
                    self.shared.state.completed(step, Phase::Serving);
                    last = Some((step, ticket));
                    wait = self.config.stall_timeout.max(self.config.heartbeat * 2);
                }
                (step, Message::FetchRow { row }) => {
                    let Some((_, ticket)) = last.filter(|(at, _)| *at == step) else {
                        return Err(link.unexpected(step, &Message::FetchRow { row }).into());
                    };
                    let shard = self.backend.logits(ticket, row)?;
                    link.send(step, &Message::Row(shard), self.config.stall_timeout)?;
                }
                (_, Message::Leave) => return Ok(()),
                (step, message) => return Err(link.unexpected(step, &message).into()),
            }
        }
    }
}
