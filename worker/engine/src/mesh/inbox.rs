//! Accepted links that wait for their era, and who may knock.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::Connection;
use super::contract::Abort;
use super::frame::{Header, Kind};
use super::hello::{
    Answer, Challenge, Hello, Identity, LinkKind, Opening, RefusalCode, SignedAnswer, SignedHello,
};
use super::key::{GroupKey, Nonce, Purpose, SECRET_BYTES, nonce};
use super::seal::LinkContext;
use super::socket::{self, EraAbort};
use super::{Members, Membership};
use crate::step::Era;

/// Former generations whose members are still told that they are over. Older ones are strangers.
const FORMER: usize = 8;

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
    pub connection: Connection,
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
    /// Of the present membership, or those that the rank was started for.
    members: Members,
    /// Whether the rank can be a member of groups that lost others than it was started without.
    members_change: bool,
    numerics: String,
    content: String,
    membership: Option<Arc<Membership>>,
    /// Keys of earlier generations, the latest last.
    former: VecDeque<(u64, GroupKey)>,
    latest: Era,
    /// Why no link is taken yet; none when ready.
    not_ready: Option<String>,
    links: Vec<Accepted>,
    current: Option<(Era, Arc<EraAbort>)>,
    interrupted: bool,
    nudges: u64,
}

impl Inbox {
    /// Not formed, not ready. `numerics` is the numerics class, `content` the checkpoint's content identity.
    #[must_use]
    pub fn new(rank: u32, members: Members, numerics: String, content: String) -> Self {
        let state = State {
            rank,
            members,
            members_change: false,
            numerics,
            content,
            membership: None,
            former: VecDeque::new(),
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

    /// The same for a rank that can take other shares of the model than the one it begins with.
    #[must_use]
    pub fn with_changing_members(self, members_change: bool) -> Self {
        self.lock().members_change = members_change;
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take a higher generation: the present era ends and waiting links are closed. False for the same one again.
    ///
    /// # Errors
    /// A sentence, for a lower generation, another group, or members that this rank cannot be one of: without
    /// [`Self::with_changing_members`] it holds the share that it has among those that it was started for.
    pub fn form(&self, membership: Membership) -> Result<bool, String> {
        let mut state = self.lock();
        let members = state.check_members(&membership)?;
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
        state.members = members;
        state.latest = Era {
            generation: membership.generation,
            epoch: 0,
        };
        if let Some(former) = state.membership.replace(Arc::new(membership)) {
            if state.former.len() == FORMER {
                state.former.pop_front();
            }
            state.former.push_back((former.generation, former.key.clone()));
        }
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

    /// Wake whoever waits here, once, so that it sees what has changed outside.
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

    /// Whether there is a key by which a dialler could prove itself.
    #[must_use]
    pub fn is_formed(&self) -> bool {
        self.lock().membership.is_some()
    }

    /// Whose key the opening of a handshake was made with. None for a stranger, who gets no answer.
    ///
    /// # Errors
    /// The operating system has no random numbers.
    pub fn recognise(&self, opening: &Opening) -> io::Result<Option<Recognised>> {
        let Some((generation, key)) = self.lock().recognise(opening) else {
            return Ok(None);
        };
        Ok(Some(Recognised {
            generation,
            key,
            challenge: nonce()?,
            nonce: opening.nonce,
        }))
    }

    /// Decide about a Hello that answers the challenge to `dialler`, answer it, and keep the link when it is welcome. None
    /// for a stranger, who gets no answer. The answer is sent under the lock: whoever takes the link out may write to it
    /// at once.
    #[must_use]
    pub fn offer(
        &self,
        dialler: &Recognised,
        signed: &SignedHello,
        stream: TcpStream,
    ) -> Option<(Hello, Answer)> {
        if !dialler.proves(signed) {
            return None;
        }
        let mut state = self.lock();
        let hello: Hello = postcard::from_bytes(&signed.hello).ok()?;
        let answer = match state.judge(&hello, dialler.generation) {
            Ok(()) => Answer::Welcome,
            Err((code, sentence)) => Answer::Refused {
                code,
                sentence,
                latest: state.latest,
            },
        };
        let sent = dialler
            .answer_bytes(&answer)
            // A fresh connection's buffer takes an answer whole; one that does not is closed.
            .is_some_and(|bytes| (&stream).write(&bytes).is_ok_and(|count| count == bytes.len()));
        if sent
            && answer == Answer::Welcome
            && let Ok(connection) = dialler.connection(&hello, stream)
        {
            state.keep(&hello, connection);
            drop(state);
            self.changed.notify_all();
        }
        Some((hello, answer))
    }
}

/// A dialler whose opening was made with the key of a generation, and the random numbers of its handshake.
#[derive(Debug)]
pub struct Recognised {
    generation: u64,
    key: GroupKey,
    challenge: Nonce,
    nonce: Nonce,
}

impl Recognised {
    /// What it is challenged with, which proves this side's knowledge of the key.
    #[must_use]
    pub fn challenge(&self) -> Challenge {
        Challenge {
            challenge: self.challenge,
            proof: self
                .key
                .prove(Purpose::Challenge, &self.challenge, &self.nonce, &[]),
        }
    }

    fn proves(&self, signed: &SignedHello) -> bool {
        let (proof, hello) = (&signed.proof, &signed.hello);
        self.key
            .verifies(proof, Purpose::Hello, &self.challenge, &self.nonce, hello)
    }

    /// The connection of a dialler that is welcome.
    fn connection(&self, hello: &Hello, stream: TcpStream) -> io::Result<Connection> {
        let context = LinkContext {
            era: hello.era,
            link: hello.link,
            challenge: self.challenge,
            nonce: self.nonce,
        };
        Connection::new(stream, &self.key, &context, (hello.to, hello.from))
    }

    fn answer_bytes(&self, answer: &Answer) -> Option<Vec<u8>> {
        let answer = postcard::to_stdvec(answer).ok()?;
        let signed = SignedAnswer {
            proof: self
                .key
                .prove(Purpose::Answer, &self.challenge, &self.nonce, &answer),
            answer,
        };
        let payload = postcard::to_stdvec(&signed).ok()?;
        socket::frame_bytes(Header::of(Kind::Answer, Era::default(), 0), &payload).ok()
    }
}

impl State {
    /// The members that it names.
    fn check_members(&self, membership: &Membership) -> Result<Members, String> {
        if membership.lost != self.members.lost() && !self.members_change {
            return Err(format!(
                "rank {} was started for {} and is told that the group has lost {:?}: start it again for these members",
                self.rank, self.members, membership.lost
            ));
        }
        let members = Members::new(self.members.topology(), &membership.lost).map_err(|error| {
            format!(
                "the group cannot do without the ranks {:?}: {error}",
                membership.lost
            )
        })?;
        if members.index(self.rank).is_none() {
            return Err(format!("rank {} is told that its group has lost it", self.rank));
        }
        if !membership.addresses.keys().eq(members.ranks()) {
            return Err(format!(
                "{} members were sent to rank {} of {members}: name the address of each of the ranks {:?}",
                membership.addresses.len(),
                self.rank,
                members.ranks()
            ));
        }
        Ok(members)
    }

    fn end_current(&mut self) {
        if let Some((_, abort)) = self.current.take() {
            abort.abort();
        }
    }

    /// The generation whose key the dialler knows, the present one first.
    fn recognise(&self, opening: &Opening) -> Option<(u64, GroupKey)> {
        let present = self.membership.as_ref().map(|now| (now.generation, &now.key));
        let former = self
            .former
            .iter()
            .rev()
            .map(|(generation, key)| (*generation, key));
        present
            .into_iter()
            .chain(former)
            .find(|(_, key)| {
                key.verifies(
                    &opening.proof,
                    Purpose::Opening,
                    &[0; SECRET_BYTES],
                    &opening.nonce,
                    &[],
                )
            })
            .map(|(generation, key)| (generation, key.clone()))
    }

    /// Decide about the Hello of a member of `generation`.
    fn judge(&self, hello: &Hello, generation: u64) -> Result<(), (RefusalCode, String)> {
        let Some(membership) = self
            .membership
            .as_ref()
            .filter(|now| now.generation == generation)
        else {
            let sentence = format!(
                "generation {generation} is over: the group is in generation {}",
                self.latest.generation
            );
            return Err((RefusalCode::OldEra, sentence));
        };
        let identity = Identity {
            group_uid: membership.group_uid.clone(),
            rank: self.rank,
            members: self.members.clone(),
            numerics: self.numerics.clone(),
            content: self.content.clone(),
        };
        identity.check(hello)?;
        if hello.era.generation != generation {
            let sentence = format!(
                "rank {} speaks of generation {} and has the key of {generation}",
                hello.from, hello.era.generation
            );
            return Err((RefusalCode::OldEra, sentence));
        }
        if hello.from > hello.to {
            let sentence = format!(
                "rank {} waits for rank {} to dial, not the other way round",
                hello.from, hello.to
            );
            return Err((RefusalCode::WrongRank, sentence));
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

    fn keep(&mut self, hello: &Hello, connection: Connection) {
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
            connection,
        });
    }
}
