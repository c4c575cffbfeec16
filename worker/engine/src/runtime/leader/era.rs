//! Connecting, forming and serving once.

use std::convert::Infallible;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::connect::{Dialling, Reached};
use super::{End, Leader, LocalEra};
use crate::backend::{BackendError, KvCapacity};
use crate::mesh::hello::Identity;
use crate::mesh::{Abort, ControlLink, DataLink, EraAbort, Members, Membership, MeshError, Outbox, TcpMesh};
use crate::runtime::executor::{Executor, LeaderLink};
use crate::runtime::input::Input;
use crate::runtime::state::{Outcome, Phase};
use crate::step::Era;

/// Attempts within one generation that may be answered by a refusal that no new attempt changes.
const LASTING_REFUSALS: u32 = 8;

pub(super) fn run(leader: &mut Leader<'_>) -> Result<Infallible, End> {
    let membership = leader.membership()?;
    if leader.last.generation != membership.generation {
        leader.last = Era {
            generation: membership.generation,
            epoch: 0,
        };
        leader.lasting_refusals = 0;
    }
    leader.last.epoch += 1;
    let era = leader.last;
    let abort = Arc::new(EraAbort::default());
    leader.context.inbox.enter(era, Arc::clone(&abort));
    leader.present = Some(Arc::clone(&membership));
    leader.silent.clear();
    leader.formed_at = None;
    let members = leader.config.members_of(&membership).map_err(End::Failed)?;
    let ended = leader
        .connect(&membership, &members, era, &abort)
        .and_then(|links| leader.lead(era, &members, links, &abort));
    // After a Leave the others close; closing first would cost them the message.
    if !matches!(ended, Err(End::Outcome(Outcome::Drained))) {
        abort.abort();
        leader.progress.stop(true);
    }
    ended
}

impl Leader<'_> {
    /// Wait until the rank is told its group.
    fn membership(&mut self) -> Result<Arc<Membership>, End> {
        loop {
            if let Some(membership) = self.context.inbox.membership() {
                return Ok(membership);
            }
            self.context
                .state
                .explain("waits to be told the members of its group");
            self.take_inputs(self.config.heartbeat, None)?;
        }
    }

    fn connect(
        &mut self,
        membership: &Arc<Membership>,
        members: &Members,
        era: Era,
        abort: &Arc<EraAbort>,
    ) -> Result<(Vec<ControlLink>, Vec<DataLink>), End> {
        let identity = Identity {
            group_uid: membership.group_uid.clone(),
            rank: 0,
            members: members.clone(),
            numerics: self.config.numerics.clone(),
            content: self.config.content.clone(),
        };
        let mut dialling = Dialling::new(
            Arc::clone(membership),
            identity,
            era,
            Arc::clone(abort),
            self.config.dial_timeout,
        );
        let mut pause = self.config.backoff.0;
        loop {
            match dialling.attempt() {
                Reached::All(plans, data) => {
                    self.lasting_refusals = 0;
                    return Ok((plans, data));
                }
                Reached::Over { .. } if abort.is_aborted() => return Err(MeshError::Aborted.into()),
                Reached::Over { epoch, rank, why } => {
                    self.last.epoch = self.last.epoch.max(epoch);
                    return Err(MeshError::PeerLost { rank, reason: why }.into());
                }
                // The operator tells a rank that it replaces to drain, and never of the later generation.
                Reached::Superseded { why, .. } if self.context.is_draining() => {
                    self.planner.fail_all(&format!("rank 0 was replaced: {why}"));
                    return Err(End::Outcome(Outcome::Drained));
                }
                Reached::Superseded { rank, why } => {
                    return Err(MeshError::PeerLost { rank, reason: why }.into());
                }
                Reached::Missing { why, lasting } => {
                    self.context.state.explain(&why);
                    self.count_refusal(lasting)?;
                }
            }
            self.take_inputs(pause, None)?;
            self.check_abort(abort)?;
            pause = (pause * 2).min(self.config.backoff.1);
        }
    }

    /// A refusal that no new attempt changes may come of a member that is just being replaced; one that lasts ends the rank.
    fn count_refusal(&mut self, lasting: Option<String>) -> Result<(), End> {
        let Some(why) = lasting else { return Ok(()) };
        self.lasting_refusals += 1;
        if self.lasting_refusals < LASTING_REFUSALS {
            return Ok(());
        }
        Err(End::Failed(BackendError::Unusable(why)))
    }

    /// Form with everybody, this rank's own compute included, and serve.
    fn lead(
        &mut self,
        era: Era,
        members: &Members,
        (links, data): (Vec<ControlLink>, Vec<DataLink>),
        abort: &Arc<EraAbort>,
    ) -> Result<Infallible, End> {
        self.context.state.enter_era(era);
        self.context.state.phase(Phase::Warming, "");
        self.planner.set_members(members);
        let mesh = TcpMesh::new(0, members.clone(), era, data, Arc::clone(abort))?;
        let (local, incoming) = mpsc::channel();
        let mut to_members = vec![LeaderLink::Local(local)];
        for link in links {
            let link = Arc::new(link);
            self.listen(Arc::clone(&link), era)?;
            let inputs = self.sender.clone();
            let outbox = Outbox::new(link, self.config.stall_timeout, move |error| {
                // A leader that has ended needs no word.
                let _ = inputs.send(Input::Lost {
                    era,
                    error,
                    heard_all: false,
                });
            });
            to_members.push(LeaderLink::Remote(outbox));
        }
        let mesh = Box::new(mesh);
        if self.eras.send(LocalEra { era, mesh, incoming }).is_err() {
            return Err(End::ComputeEnded);
        }
        let mut executor = Executor::new(era, members, to_members, self.config.patience(), Instant::now());
        executor.form(
            self.config.form_limits(),
            self.planner.adapters().sources(),
            Instant::now(),
        )?;
        let ended = self
            .formed(era, &mut executor, abort)
            .and_then(|()| self.serve(&mut executor, abort));
        match ended {
            Err(End::Era(error)) => Err(self.last_words(error, abort)),
            Err(End::Outcome(Outcome::Drained)) => {
                executor.leave(Instant::now());
                Err(End::Outcome(Outcome::Drained))
            }
            ended => ended,
        }
    }

    /// Hear a member on a thread of its own, which ends with the link.
    fn listen(&self, link: Arc<ControlLink>, era: Era) -> Result<(), MeshError> {
        let (rank, inputs) = (link.peer(), self.sender.clone());
        let name = format!("rank-{rank}-answers");
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            loop {
                let input = match link.receive() {
                    Ok((step, message)) => Input::Member {
                        era,
                        rank,
                        step,
                        message,
                    },
                    Err(error) => Input::Lost {
                        era,
                        error,
                        heard_all: true,
                    },
                };
                let ended = matches!(input, Input::Lost { .. });
                if inputs.send(input).is_err() || ended {
                    return;
                }
            }
        });
        match spawned {
            Ok(_) => Ok(()),
            Err(error) => Err(MeshError::PeerLost {
                rank,
                reason: format!("no thread can be started to hear it: {error}"),
            }),
        }
    }

    /// Wait until everybody has formed.
    fn formed(&mut self, era: Era, executor: &mut Executor, abort: &EraAbort) -> Result<(), End> {
        let KvCapacity { blocks, kept } = loop {
            if let Some(capacity) = executor.capacity() {
                break capacity;
            }
            if let Some(what) = executor.forming() {
                self.context.state.explain(&what);
            }
            self.wait(executor, executor.check_at())?;
            self.check_abort(abort)?;
        };
        for (number, why) in executor.missing_adapters() {
            self.lose_adapter(executor, number, &why)?;
        }
        if let (Some(loss), Some(present)) = (self.loss.take(), &self.present)
            && loss.may_be_caused(present)
        {
            self.planner.charge_loss(&loss.to_string());
        }
        self.planner.enter(era, self.config.limits(blocks), kept);
        self.queue.set_max_tokens(self.config.queued_tokens(blocks));
        self.context.state.update(|state| state.kv_blocks = blocks);
        self.formed_at = Some(Instant::now());
        Ok(())
    }

    fn serve(&mut self, executor: &mut Executor, abort: &EraAbort) -> Result<Infallible, End> {
        loop {
            let advanced = self.planner.advance(executor, Instant::now);
            if let Some(step) = advanced? {
                let draining = self.context.is_draining();
                let phase = if draining { Phase::Draining } else { Phase::Serving };
                self.context.state.completed(step, phase);
                self.backoff = self.config.backoff.0;
            }
            let mut until = executor.check_at();
            if self.planner.is_resting() {
                let due = self.planner.ended_at().map(|at| at + self.config.heartbeat);
                match due.filter(|due| *due > Instant::now()) {
                    Some(due) => until = until.min(due),
                    None => self.planner.heartbeat(executor, Instant::now())?,
                }
            }
            self.wait(executor, until)?;
            self.check_abort(abort)?;
        }
    }

    /// Take inputs until `until` or the first, and see that the members move.
    fn wait(&mut self, executor: &mut Executor, until: Instant) -> Result<(), End> {
        let wait = until.saturating_duration_since(Instant::now());
        // Zero would not let others in while there is always something to do.
        self.take_inputs(wait.max(Duration::from_micros(1)), Some(executor))?;
        self.check_adapters(executor)?;
        Ok(executor.check(Instant::now())?)
    }
}
