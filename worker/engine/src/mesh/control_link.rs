//! The plan link between rank 0 and another rank.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::contract::MeshError;
use super::frame::{Header, Kind};
use super::socket::{self, EraAbort, SocketError};
use crate::backend::KvDtype;
use crate::step::{Era, Late, LogitShard, Plan, StepOutput};

/// What travels on a plan link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Leader: the links are there, form with these limits.
    Setup(Setup),
    /// Follower: formed, with so many KV blocks.
    Ready {
        /// [`crate::KvCapacity::blocks`].
        blocks: u32,
    },
    /// Leader: execute this step.
    Plan(Plan),
    /// Leader: values that the plan of that step left open, or rows of it that nobody wants any more.
    Late(Late),
    /// Follower: the step's answer.
    Output(StepOutput),
    /// Leader: send this rank's part of the logits of a sampled position of that step.
    Fetch {
        /// Index into [`Plan::rows`].
        row: u32,
        /// Position among the row's answered ones.
        offset: u32,
    },
    /// Follower: the part.
    Row(LogitShard),
    /// Leader: the group is drained and ends; exit.
    Leave,
    /// Follower: it cannot go on; the era ends.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Limits that all ranks form with; each adds its own memory for KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// See [`crate::FormSpec::max_sequences`].
    pub max_sequences: u32,
    /// See [`crate::FormSpec::max_batched_tokens`].
    pub max_batched_tokens: u32,
    /// See [`crate::FormSpec::max_context`].
    pub max_context: u32,
    /// See [`crate::FormSpec::block_size`].
    pub block_size: u32,
    /// See [`crate::FormSpec::steps_in_flight`].
    pub steps_in_flight: u32,
    /// See [`crate::FormSpec::kv_dtype`].
    pub kv_dtype: KvDtype,
    /// See [`crate::FormSpec::max_adapters`].
    pub max_adapters: u32,
}

impl Message {
    fn name(&self) -> &'static str {
        match self {
            Self::Setup(_) => "Setup",
            Self::Ready { .. } => "Ready",
            Self::Plan(_) => "Plan",
            Self::Late(_) => "Late",
            Self::Output(_) => "Output",
            Self::Fetch { .. } => "Fetch",
            Self::Row(_) => "Row",
            Self::Leave => "Leave",
            Self::Failed { .. } => "Failed",
        }
    }
}

/// One end of a plan link in one era.
#[derive(Debug)]
pub struct ControlLink {
    stream: TcpStream,
    peer: u32,
    era: Era,
    abort: Arc<EraAbort>,
}

impl ControlLink {
    /// A link over a connection whose handshake is done.
    #[must_use]
    pub fn new(stream: TcpStream, peer: u32, era: Era, abort: Arc<EraAbort>) -> Self {
        Self {
            stream,
            peer,
            era,
            abort,
        }
    }

    /// The rank at the other end.
    #[must_use]
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Whether the peer has closed the connection, as far as is known without waiting.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        socket::is_closed(&self.stream)
    }

    /// The messages as one run of bytes, so that a plan for many ranks is encoded once.
    ///
    /// # Errors
    /// [`MeshError::Protocol`] when a message is too long to send.
    pub fn encode(era: Era, step: u64, messages: &[Message]) -> Result<Vec<u8>, MeshError> {
        let mut bytes = Vec::new();
        for message in messages {
            let header = Header::of(Kind::Control, era, step);
            let frame = postcard::to_stdvec(message)
                .map_err(|error| SocketError::Content(error.to_string()))
                .and_then(|payload| socket::frame_bytes(header, &payload));
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame),
                Err(error) => {
                    return Err(MeshError::Protocol {
                        rank: 0,
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(bytes)
    }

    /// Send what [`Self::encode`] made.
    ///
    /// # Errors
    /// [`MeshError`]; the link is unusable then.
    pub fn send_bytes(&mut self, bytes: &[u8], wait: Duration) -> Result<(), MeshError> {
        socket::write_all(&self.stream, bytes, Instant::now() + wait).map_err(|error| self.lost(error, wait))
    }

    /// Send one message.
    ///
    /// # Errors
    /// [`MeshError`]; the link is unusable then.
    pub fn send(&mut self, step: u64, message: &Message, wait: Duration) -> Result<(), MeshError> {
        let bytes = Self::encode(self.era, step, std::slice::from_ref(message))?;
        self.send_bytes(&bytes, wait)
    }

    /// Receive one message and the step it belongs to.
    ///
    /// # Errors
    /// [`MeshError`]; the link is unusable then. A peer's [`Message::Failed`] is an error too.
    pub fn receive(&mut self, wait: Duration) -> Result<(u64, Message), MeshError> {
        let (header, payload) = socket::read_frame(&self.stream, Instant::now() + wait)
            .map_err(|error| self.lost(error, wait))?;
        if header.kind != Kind::Control || header.era != self.era {
            let reason = format!(
                "a {:?} frame of era {:?} came on the plan link of {:?}",
                header.kind, header.era, self.era
            );
            return Err(MeshError::Protocol {
                rank: self.peer,
                reason,
            });
        }
        match postcard::from_bytes(&payload) {
            Ok(Message::Failed { reason }) => Err(MeshError::PeerLost {
                rank: self.peer,
                reason,
            }),
            Ok(message) => Ok((header.step, message)),
            Err(error) => Err(MeshError::Protocol {
                rank: self.peer,
                reason: error.to_string(),
            }),
        }
    }

    /// The error for a message that is well formed but out of place.
    #[must_use]
    pub fn unexpected(&self, step: u64, message: &Message) -> MeshError {
        let reason = format!("unexpected {} in step {step}", message.name());
        MeshError::Protocol {
            rank: self.peer,
            reason,
        }
    }

    fn lost(&self, error: SocketError, wait: Duration) -> MeshError {
        blame(self.peer, error, wait, &self.abort)
    }
}

/// What a socket's failure means for the era.
pub(super) fn blame(rank: u32, error: SocketError, wait: Duration, abort: &EraAbort) -> MeshError {
    if abort.is_aborted() {
        return MeshError::Aborted;
    }
    let millis = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    match error {
        SocketError::Deadline => MeshError::Deadline { rank, millis },
        SocketError::Frame(_) | SocketError::Content(_) => MeshError::Protocol {
            rank,
            reason: error.to_string(),
        },
        SocketError::Closed | SocketError::Io(_) => MeshError::PeerLost {
            rank,
            reason: error.to_string(),
        },
    }
}
