//! Links between the ranks of a group: a full mesh of TCP connections.
//!
//! Rank 0 dials every other rank twice (a plan link and a data link). When rank 0's Hello for a new era arrives, every
//! other rank `i` dials the data link of each rank `j > i`. All frames carry the era; every wait has a deadline; the
//! deadline is ours and does not lean on TCP keepalive.
//!
//! | module | what it is |
//! |---|---|
//! | [`frame`] | the fixed header in front of every message |
//! | [`hello`] | the handshake and its refusals |
//! | [`socket`] | non-blocking reads and writes with deadlines, and the era's abort |
//! | [`control_link`] | plans, late values and answers between rank 0 and another rank |
//! | [`dial`] | connecting to a peer |
//! | [`listener`] | accepting peers, and surviving everybody else |
//! | [`inbox`] | accepted links that wait for their era |
//! | [`data_link`] | frames of f32 between two ranks |
//! | [`exchange`] | moving frames to and from many peers at once |
//! | [`tcp_collective`] | [`crate::Collective`] over data links |
//! | [`local`] | meshes over loopback inside one process |

pub mod control_link;
pub mod data_link;
pub mod dial;
pub mod exchange;
pub mod frame;
pub mod hello;
pub mod inbox;
pub mod listener;
pub mod local;
pub mod socket;
pub mod tcp_collective;

#[cfg(test)]
mod collective_tests;

pub use control_link::{ControlLink, Message};
pub use data_link::DataLink;
pub use hello::{Answer, Hello, LinkKind, RefusalCode};
pub use inbox::{Inbox, Membership};
pub use listener::Listener;
pub use socket::EraAbort;
pub use tcp_collective::TcpCollective;
