//! Limits of API keys, which hold over all gateways together.
//!
//! Each key has one gateway that keeps its books: the first of all ready gateways in an order that follows from the
//! names of the key and of the gateways (rendezvous hashing), so that they agree without talking. The others ask it
//! before a request begins and tell it when one has ended. So a limit is kept exactly while the set of gateways stays.
//! When it changes, whoever takes over a key knows nothing of its last minute and counts it as fully used. When the
//! keeper of a key cannot be reached, a gateway admits its own share of the limit.
//!
//! | module | what it is |
//! |---|---|
//! | [`window`] | what was used in the last minute |
//! | [`ledger`] | the books of the keys that this gateway keeps |
//! | [`peers`] | which gateway keeps a key |
//! | [`admission`] | letting requests in, here or by asking |
//! | [`headers`] | what a client is told of its limits |
//! | [`service`] | the gRPC service for other gateways |

pub mod admission;
pub mod headers;
pub mod ledger;
pub mod peers;
pub mod service;
pub mod window;

pub use admission::{Admission, Quotas};
