//! The steps of every rank but the first.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::config::RankConfig;
use super::control::RankContext;
use super::leader::last_words::LAST_WORDS;
use super::member::link::{WAITING_MESSAGES, read_plans};
use super::member::{MemberEra, MemberLink, Reports, serve_era};
use super::state::Outcome;
use crate::backend::{Backend, BackendError};
use crate::mesh::dial::dial;
use crate::mesh::hello::{Identity, LinkKind};
use crate::mesh::{Abort, ControlLink, DataLink, EraAbort, Members, Membership, MeshError, TcpMesh};
use crate::step::Era;

/// Missing links are dialled this often.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

pub(super) struct Follower<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) config: &'a RankConfig,
    pub(super) context: &'a RankContext,
}

struct Links {
    plan: Option<ControlLink>,
    data: Vec<DataLink>,
}

impl<B: Backend> Follower<'_, B> {
    /// Follow until stopped, or until rank 0 has left and this rank drains: a rank that is to stay keeps its weights for
    /// the next leader.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] and [`BackendError::Bug`]; rank 0 has been told.
    pub(super) fn run(mut self) -> Result<Outcome, BackendError> {
        let mut over = Era::default();
        let mut leaderless = false;
        loop {
            let (membership, era) = match self.next_era(over, leaderless) {
                Ok(next) => next,
                Err(outcome) => return Ok(outcome),
            };
            let abort = Arc::new(EraAbort::default());
            self.context.inbox.enter(era, Arc::clone(&abort));
            let ended = self.one_era(&membership, era, &abort);
            leaderless = ended.is_ok();
            abort.abort();
            over = era;
            let error = match ended {
                Ok(()) => {
                    let (rank, reason) = (0, "it was told to stop".into());
                    MeshError::PeerLost { rank, reason }.into()
                }
                Err(error @ BackendError::Lost(_)) => error,
                Err(error) => return Err(error),
            };
            tracing::warn!(?era, "the era ended: {error}");
            self.context.state.lost(&error);
        }
    }

    /// Wait until rank 0 announces an era after `over`. An outcome when there is none to wait for: the rank is stopped,
    /// or it drains and rank 0 has left.
    fn next_era(&self, over: Era, leaderless: bool) -> Result<(Arc<Membership>, Era), Outcome> {
        let inbox = &self.context.inbox;
        loop {
            if self.context.is_stopped() {
                return Err(Outcome::Stopped);
            }
            if leaderless && self.context.is_draining() {
                return Err(Outcome::Left);
            }
            let latest = inbox.latest();
            match inbox.membership() {
                Some(membership) if latest.epoch > 0 && latest > over => return Ok((membership, latest)),
                Some(_) if over == Era::default() => {
                    self.context.state.explain("waits for rank 0 to connect")
                }
                Some(_) => {}
                None => self
                    .context
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
        let members = self.config.members_of(membership)?;
        let Links { plan, data } = self.connect(membership, &members, era, abort)?;
        let Some(plan) = plan.map(Arc::new) else {
            return Err(MeshError::Aborted.into());
        };
        let mesh = TcpMesh::new(self.config.rank, members, era, data, Arc::clone(abort))?;
        let (messages, incoming) = mpsc::sync_channel(WAITING_MESSAGES);
        let progress = self.backend.progress();
        std::thread::scope(|scope| {
            let (link, progress) = (&plan, &progress);
            scope.spawn(move || read_plans(link, &messages, progress));
            let member = MemberEra {
                config: self.config,
                state: &self.context.state,
                link: MemberLink {
                    incoming,
                    reports: Reports::Remote {
                        link: Arc::clone(&plan),
                        wait: self.config.stall_timeout,
                    },
                },
            };
            let served = serve_era(self.backend, Box::new(mesh), &member);
            if served.is_err() {
                member.link.linger(LAST_WORDS);
            }
            // Whoever reads the link ends with it; a failure has been told by now.
            drop(member);
            abort.abort();
            served
        })
    }

    /// Collect the links of an era: rank 0's two, and one to each other member.
    fn connect(
        &self,
        membership: &Membership,
        members: &Members,
        era: Era,
        abort: &Arc<EraAbort>,
    ) -> Result<Links, BackendError> {
        let rank = self.config.rank;
        let identity = Identity {
            group_uid: membership.group_uid.clone(),
            rank,
            members: members.clone(),
            numerics: self.config.numerics.clone(),
            content: self.config.content.clone(),
        };
        let lost = |rank, reason: String| MeshError::PeerLost { rank, reason };
        let mut links = Links {
            plan: None,
            data: Vec::new(),
        };
        let mut dial_at = Instant::now();
        loop {
            while let Some(accepted) = self.context.inbox.take(era) {
                accepted
                    .connection
                    .watch(abort)
                    .map_err(|error| lost(accepted.from, error.to_string()))?;
                match accepted.link {
                    LinkKind::Plan => {
                        links.plan = Some(ControlLink::new(accepted.connection, 0, era, Arc::clone(abort)));
                    }
                    LinkKind::Data => links.data.push(DataLink::new(accepted.connection, accepted.from)),
                }
            }
            let missing = |links: &Links, peer: u32| !links.data.iter().any(|link| link.peer() == peer);
            if Instant::now() >= dial_at {
                for (peer, address) in membership.addresses.range(rank + 1..) {
                    let peer = *peer;
                    if missing(&links, peer) {
                        let hello = identity.hello(era, peer, LinkKind::Data);
                        match dial(*address, &hello, &membership.key, self.config.dial_timeout) {
                            Ok(connection) => {
                                let link = DataLink::new(connection, peer);
                                link.watch(abort).map_err(|error| lost(peer, error.to_string()))?;
                                links.data.push(link);
                            }
                            Err(error) => self.context.state.explain(&error.to_string()),
                        }
                    }
                    if abort.is_aborted() {
                        return Err(MeshError::Aborted.into());
                    }
                }
                dial_at = Instant::now() + RETRY_INTERVAL;
            }
            if links.plan.is_some() && links.data.len() + 1 == membership.addresses.len() {
                return Ok(links);
            }
            if links.plan.as_ref().is_some_and(ControlLink::is_closed) {
                return Err(lost(0, "it closed the connection before the group was complete".into()).into());
            }
            if abort.is_aborted() || self.context.is_stopped() {
                return Err(MeshError::Aborted.into());
            }
            self.context.inbox.wait_for_link(era, RETRY_INTERVAL);
        }
    }
}
