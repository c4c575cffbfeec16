//! Links between the ranks of a group: a full mesh of TCP connections.
//!
//! Rank 0 dials every other rank twice (a plan link and a data link). When rank 0's Hello for a new era arrives, every
//! other rank `i` dials the data link of each rank `j > i`. Ranks that the group has lost are left out; the others keep
//! their numbers, and refuse each other when they disagree about who is lost. Both ends prove that they know the generation's key before
//! anything else is said, and encrypt everything after that. All frames carry the era; every wait has a deadline; the deadline is ours and does not lean on
//! TCP keepalive.
//!
//! | module | what it is |
//! |---|---|
//! | [`contract`] | [`Mesh`]: what a backend builds its communicators on |
//! | [`frame`] | the fixed header in front of every message |
//! | [`key`] | the key of a generation, and the proof of knowing it |
//! | [`hello`] | what is said in a handshake, and its refusals |
//! | [`connection`] | a connection whose handshake is done, and its keys |
//! | `seal` | encryption and authentication of what crosses a link |
//! | [`seal_cost`] | what that costs |
//! | [`membership`] | who belongs to a group |
//! | [`socket`] | non-blocking reads and writes with deadlines, and the era's abort |
//! | [`message`] | what rank 0 and the members say to each other: plans, late values, answers |
//! | [`control_link`] | messages between rank 0 and another rank |
//! | [`outbox`] | sending on a plan link without waiting for its peer |
//! | [`dial`] | connecting to a peer |
//! | [`listener`] | accepting peers, and surviving everybody else |
//! | [`handshakes`] | who gives way when too many connect |
//! | [`inbox`] | accepted links that wait for their era |
//! | [`data_link`] | frames of a backend between two ranks |
//! | `abort_frame` | telling peers that the era is over |
//! | `incoming`, `outgoing` | frames of a data link on their way |
//! | [`exchange`] | moving frames to and from many peers at once |
//! | [`files`] | passing file descriptors inside a pod |
//! | [`tcp`] | [`Mesh`] over data links |
//! | [`local`] | meshes over loopback inside one process |

mod abort_frame;
pub mod connection;
pub mod contract;
pub mod control_link;
pub mod data_link;
pub mod dial;
pub mod exchange;
pub mod files;
pub mod frame;
mod handshakes;
pub mod hello;
pub mod inbox;
mod incoming;
pub mod key;
pub mod listener;
pub mod local;
pub mod membership;
pub mod message;
pub mod outbox;
mod outgoing;
mod seal;
pub mod seal_cost;
pub mod socket;
pub mod tcp;

#[cfg(test)]
mod forgery_tests;
#[cfg(test)]
mod handshake_tests;
#[cfg(test)]
mod tests;

pub use connection::Connection;
pub use contract::{Abort, Label, Mesh, MeshError, Transfer, Wait};
pub use control_link::{ControlLink, Frames};
pub use data_link::DataLink;
pub use hello::{Answer, Hello, Identity, LinkKind, RefusalCode};
pub use inbox::Inbox;
pub use key::GroupKey;
pub use listener::Listener;
pub use llamero_checkpoint::{Members, Topology};
pub use membership::Membership;
pub use message::{Failure, Message};
pub use outbox::Outbox;
pub use socket::EraAbort;
pub use tcp::TcpMesh;
