//! Open gRPC streams to worker pods and gateways.
//!
//! | module | what |
//! |---|---|
//! | [`pool`] | one subscription per peer, reconnecting; the latest message of each |
//! | [`subscribe`] | what is subscribed to: rank reports, load, demand |
//! | [`follow`] | which pods of a group are listened to |
//! | [`form`] | `Form` and `Drain` calls to worker pods |

pub mod follow;
pub mod form;
pub mod pool;
pub mod subscribe;

pub use follow::{Dialler, Links, Membership, Streams};
pub use pool::{Pool, Received};
pub use subscribe::{DemandStream, LoadStream, RankStream};
