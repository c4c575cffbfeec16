//! Accepted links that wait for their era, and who may knock.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::frame::{Header, Kind};
use super::hello::{Answer, Hello, Identity, LinkKind, RefusalCode};
use super::socket::{self, EraAbort};
use crate::collective::Abort;
use crate::step::Era;

/// One membership of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// metadata.uid of the group.
    pub group_uid: String,
    /// Only grows.
    pub generation: u64,
    /// Where each rank listens, in rank order.
    pub members: Vec<SocketAddr>,
}

/// A link whose handshake is done.
#[derive(Debug)]
pub struct Accepted {
    /// The era it is for.
    pub era: Era,
    /// The dialler.
    pub from: u32,
    /// What for.
    pub link: LinkKind,
    /// The connection.
    pub stream: TcpStream,
}

/// What the listener's threads and the rank's own thread share.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    rank: u32,
    numerics: String,
    model: String,
    membership: Option<Arc<Membership>>,
    latest: Era,
    /// Why no link is taken yet; none when ready.
    not_ready: Option<String>,
    links: Vec<Accepted>,
    current: Option<(Era, Arc<EraAbort>)>,
    interrupted: bool,
    nudges: u64,
}

impl Inbox {
    /// Not formed, not ready.
    #[must_use]
    pub fn new(rank: u32, numerics: String, model: String) -> Self {
        let state = State {
            rank,
            numerics,
            model,
            membership: None,
            latest: Era::default(),
            not_ready: Some("its weights are not loaded yet".into()),
            links: Vec::new(),
            current: None,
            interrupted: false,
            nudges: 0,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take a higher generation: the present era ends and waiting links are closed. False for the same one again.
    ///
    /// # Errors
    /// A sentence, for a lower generation, another group, or members that this rank is not among.
    pub fn form(&self, membership: Membership) -> Result<bool, String> {
        let mut state = self.lock();
        if membership.members.len() <= state.rank as usize {
            return Err(format!(
                "this is rank {} and the group has only {} members: name every rank's address in rank order",
                state.rank,
                membership.members.len()
            ));
        }
        if let Some(present) = &state.membership {
            if present.group_uid != membership.group_uid {
                return Err(format!(
                    "this rank belongs to group {} and not to {}",
                    present.group_uid, membership.group_uid
                ));
            }
            if membership.generation < present.generation {
                return Err(format!(
                    "generation {} is old: this rank is in generation {}",
                    membership.generation, present.generation
                ));
            }
            if membership.generation == present.generation {
                return Ok(false);
            }
        }
        state.latest = Era {
            generation: membership.generation,
            epoch: 0,
        };
        state.membership = Some(Arc::new(membership));
        state.links.clear();
        state.end_current();
        drop(state);
        self.changed.notify_all();
        Ok(true)
    }

    /// The present membership.
    #[must_use]
    pub fn membership(&self) -> Option<Arc<Membership>> {
        self.lock().membership.clone()
    }

    /// Take links from here on, or say why not.
    pub fn set_ready(&self, not_ready: Option<String>) {
        self.lock().not_ready = not_ready;
    }

    /// The latest era rank 0 has announced; epoch 0 before the first.
    #[must_use]
    pub fn latest(&self) -> Era {
        self.lock().latest
    }

    /// Enter an era. Its abort is used when a later one is announced; at once when that has happened already.
    pub fn enter(&self, era: Era, abort: Arc<EraAbort>) {
        let mut state = self.lock();
        if era < state.latest || state.interrupted {
            abort.abort();
        }
        state.latest = state.latest.max(era);
        state.current = Some((era, abort));
    }

    /// End the present era for good, for a shutdown. No wait lasts from here on.
    pub fn interrupt(&self) {
        let mut state = self.lock();
        state.interrupted = true;
        state.end_current();
        drop(state);
        self.changed.notify_all();
    }

    /// Let who waits here look around, once.
    pub fn nudge(&self) {
        self.lock().nudges += 1;
        self.changed.notify_all();
    }

    /// Take a link of an era out.
    #[must_use]
    pub fn take(&self, era: Era) -> Option<Accepted> {
        let mut state = self.lock();
        let index = state.links.iter().position(|link| link.era == era)?;
        Some(state.links.swap_remove(index))
    }

    /// Wait for an era after `over` to be announced, for a membership before the first, or for `wait`.
    pub fn wait_for_era(&self, over: Era, wait: Duration) {
        self.wait_while(wait, |state| {
            state.membership.is_none() || state.latest.epoch == 0 || state.latest <= over
        });
    }

    /// Wait for a link of `era`, for its end, or for `wait`.
    pub fn wait_for_link(&self, era: Era, wait: Duration) {
        self.wait_while(wait, |state| {
            let goes_on = state
                .current
                .as_ref()
                .is_some_and(|(current, abort)| *current == era && !abort.is_aborted());
            goes_on && !state.links.iter().any(|link| link.era == era)
        });
    }

    fn wait_while(&self, wait: Duration, vain: impl Fn(&State) -> bool) {
        let state = self.lock();
        let nudges = state.nudges;
        drop(self.changed.wait_timeout_while(state, wait, |state| {
            !state.interrupted && state.nudges == nudges && vain(state)
        }));
    }

    /// Decide about a Hello, answer it, and keep the link when it is welcome. The answer is sent under the lock: whoever
    /// takes the link out may write to it at once.
    pub fn offer(&self, hello: &Hello, stream: TcpStream) -> Answer {
        let mut state = self.lock();
        let answer = match state.judge(hello) {
            Ok(()) => Answer::Welcome,
            Err((code, sentence)) => Answer::Refused {
                code,
                sentence,
                latest: state.latest,
            },
        };
        let header = Header {
            kind: Kind::Answer,
            era: hello.era,
            step: 0,
            sequence: 0,
            length: 0,
        };
        let sent = postcard::to_stdvec(&answer)
            .ok()
            .and_then(|payload| socket::frame_bytes(header, &payload).ok())
            // A fresh connection's buffer takes an answer whole; one that does not is closed.
            .is_some_and(|bytes| (&stream).write(&bytes).is_ok_and(|count| count == bytes.len()));
        if sent && answer == Answer::Welcome {
            state.keep(hello, stream);
            drop(state);
            self.changed.notify_all();
        }
        answer
    }
}

impl State {
    fn end_current(&mut self) {
        if let Some((_, abort)) = self.current.take() {
            abort.abort();
        }
    }

    fn judge(&self, hello: &Hello) -> Result<(), (RefusalCode, String)> {
        let Some(membership) = &self.membership else {
            let sentence = format!("rank {} has not been told its group yet", self.rank);
            return Err((RefusalCode::NotFormed, sentence));
        };
        let identity = Identity {
            group_uid: membership.group_uid.clone(),
            rank: self.rank,
            world: u32::try_from(membership.members.len()).unwrap_or(u32::MAX),
            numerics: self.numerics.clone(),
            model: self.model.clone(),
        };
        // Before the rest: a member that was replaced may differ in everything.
        if hello.group_uid == membership.group_uid && hello.era.generation < membership.generation {
            let sentence = format!(
                "generation {} is over: the group is in generation {}",
                hello.era.generation, membership.generation
            );
            return Err((RefusalCode::OldEra, sentence));
        }
        identity.check(hello)?;
        if hello.from > hello.to {
            let sentence = format!(
                "rank {} waits for rank {} to dial, not the other way round",
                hello.from, hello.to
            );
            return Err((RefusalCode::WrongRank, sentence));
        }
        if hello.era.generation > membership.generation {
            let sentence = format!(
                "rank {} has not been told generation {} yet",
                self.rank, hello.era.generation
            );
            return Err((RefusalCode::NotFormed, sentence));
        }
        if let Some(why) = &self.not_ready {
            return Err((
                RefusalCode::NotReady,
                format!("rank {} is not ready: {why}", self.rank),
            ));
        }
        let over = self
            .current
            .as_ref()
            .is_some_and(|(era, abort)| *era == hello.era && abort.is_aborted());
        if hello.era < self.latest || hello.era.epoch == 0 || over {
            let sentence = format!(
                "epoch {} is over: epoch {} was the latest",
                hello.era.epoch, self.latest.epoch
            );
            return Err((RefusalCode::OldEra, sentence));
        }
        let same =
            |link: &&Accepted| link.from == hello.from && link.link == hello.link && link.era >= hello.era;
        if self.links.iter().any(|link| same(&link)) {
            let sentence = format!("rank {} has this link to rank {} already", hello.from, hello.to);
            return Err((RefusalCode::Duplicate, sentence));
        }
        Ok(())
    }

    fn keep(&mut self, hello: &Hello, stream: TcpStream) {
        // Only rank 0 announces eras. A link of a later era from somebody else waits for the announcement.
        if hello.from == 0 && hello.era > self.latest {
            self.latest = hello.era;
            self.end_current();
        }
        let latest = self.latest;
        self.links
            .retain(|link| link.era >= latest && !(link.from == hello.from && link.link == hello.link));
        self.links.push(Accepted {
            era: hello.era,
            from: hello.from,
            link: hello.link,
            stream,
        });
    }
}
