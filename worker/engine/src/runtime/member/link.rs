//! The member's end of the link to the leader.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use crate::backend::StepProgress;
use crate::mesh::{ControlLink, MeshError, Message};
use crate::runtime::input::Input;
use crate::step::Era;

/// Messages of the leader that may wait; the connection is not read further beyond. A step has a handful.
pub(in crate::runtime) const WAITING_MESSAGES: usize = 256;

/// What a member receives: the step and the message, or why there are no more.
pub(in crate::runtime) type Incoming = Result<(u64, Message), MeshError>;

/// The link of a member in one era.
pub(in crate::runtime) struct MemberLink {
    pub(in crate::runtime) incoming: Receiver<Incoming>,
    pub(in crate::runtime) reports: Reports,
}

/// The way of a member's messages to the leader.
#[derive(Clone)]
pub(in crate::runtime) enum Reports {
    /// To the leader's thread in this process.
    Local { era: Era, inputs: Sender<Input> },
    /// Over the network.
    Remote { link: Arc<ControlLink>, wait: Duration },
}

impl Reports {
    pub(in crate::runtime) fn send(&self, step: u64, message: Message) -> Result<(), MeshError> {
        match self {
            Self::Local { era, inputs } => {
                let (era, rank) = (*era, 0);
                let input = Input::Member {
                    era,
                    rank,
                    step,
                    message,
                };
                inputs.send(input).map_err(|_| MeshError::Aborted)
            }
            Self::Remote { link, wait } => link.send(step, message, *wait),
        }
    }
}

impl MemberLink {
    /// The next message, at most until `wait` is over: the leader speaks more often than that.
    pub(super) fn receive(&self, wait: Duration) -> Incoming {
        match self.incoming.recv_timeout(wait) {
            Ok(incoming) => incoming,
            Err(RecvTimeoutError::Timeout) => Err(MeshError::Deadline {
                rank: 0,
                millis: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(MeshError::Aborted),
        }
    }

    /// Let the leader end the era, at most until `wait` is over. A connection that is closed while messages of the peer are
    /// unread is reset, and what was said last over it is lost (RFC 9293, section 3.10.7).
    pub(in crate::runtime) fn linger(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while self
            .receive(until.saturating_duration_since(Instant::now()))
            .is_ok()
        {}
    }

    /// The next message if it is there already.
    pub(super) fn try_receive(&self) -> Result<Option<(u64, Message)>, MeshError> {
        match self.incoming.try_recv() {
            Ok(incoming) => incoming.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(MeshError::Aborted),
        }
    }
}

/// Read a plan link until it ends, which also ends the step under way: nobody waits for it any more.
pub(in crate::runtime) fn read_plans(
    link: &ControlLink,
    into: &SyncSender<Incoming>,
    progress: &StepProgress,
) {
    loop {
        let incoming = link.receive();
        let ended = incoming.is_err();
        if ended {
            progress.stop(true);
        }
        if into.send(incoming).is_err() || ended {
            return;
        }
    }
}
