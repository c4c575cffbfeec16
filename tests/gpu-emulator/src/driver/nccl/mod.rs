//! `libnccl.so.2`: collectives over TCP, in the order of a stream.
//!
//! | module | what it is |
//! |---|---|
//! | `mesh` | a connection between each pair of ranks, found through a unique id that carries an address |
//! | `communicator` | exchanges, what happens when a rank is lost, abort |
//! | `abi` | the exported functions |
//!
//! As with the real library, an exchange with a lost rank does not end by itself: the communicator reports an
//! asynchronous error, and the stream goes on when somebody aborts it.

mod abi;
mod communicator;
mod mesh;

pub(super) use communicator::Communicator;
