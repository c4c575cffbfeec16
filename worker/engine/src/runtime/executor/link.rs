//! The leader's end of the link to one member.

use std::cell::OnceCell;
use std::sync::mpsc::Sender;
use std::time::Instant;

use crate::mesh::{ControlLink, Frames, MeshError, Message, Outbox};
use crate::runtime::member::link::Incoming;
use crate::step::Era;

/// How the leader reaches a member. What the member says comes as [`crate::runtime::input::Input`].
pub(in crate::runtime) enum LeaderLink {
    /// A thread of this process.
    Local(Sender<Incoming>),
    /// Over the network.
    Remote(Outbox),
}

/// Messages for all members, which are encoded once, and not at all where all members are in this process.
pub(in crate::runtime) struct Outgoing {
    era: Era,
    messages: Vec<(u64, Message)>,
    frames: OnceCell<Frames>,
}

impl Outgoing {
    pub(in crate::runtime) fn new(era: Era, messages: Vec<(u64, Message)>) -> Self {
        Self {
            era,
            messages,
            frames: OnceCell::new(),
        }
    }

    fn frames(&self) -> Result<&Frames, MeshError> {
        if let Some(frames) = self.frames.get() {
            return Ok(frames);
        }
        let frames = ControlLink::encode(self.era, &self.messages)?;
        Ok(self.frames.get_or_init(|| frames))
    }
}

impl LeaderLink {
    /// Send without waiting for the member.
    pub(super) fn send(&self, outgoing: &Outgoing) -> Result<(), MeshError> {
        match self {
            Self::Local(member) => {
                for message in &outgoing.messages {
                    // A member that ended has said why, or will have.
                    let _ = member.send(Ok(message.clone()));
                }
                Ok(())
            }
            Self::Remote(outbox) => outbox.send(outgoing.frames()?),
        }
    }

    /// Wait until all messages are on their way, at most until `until`.
    pub(super) fn flush(&self, until: Instant) {
        match self {
            Self::Local(_) => {}
            Self::Remote(outbox) => outbox.flush(until),
        }
    }
}
