//! The fault suite: faults on a schedule that a seed repeats, on the real cluster, while 64 streams run.
//!
//! ```text
//! seed ─► schedule ─► inflict ─► cluster ◄─ load: 64 streams through the gateway
//!                                   │                    │ ended streams
//!                                 watch ─► samples    table: whole, expected, or wrong
//!                                   └────────► report ◄──┘
//! ```
//! | module | what it holds |
//! |---|---|
//! | [`answer`] | an answer as it comes |
//! | `client` | one stream |
//! | [`fault`] | kinds of faults |
//! | `inflict` | causing them |
//! | `leaks` | what must be as it was |
//! | `load` | 64 streams |
//! | `picture` | the timeline |
//! | `random` | numbers that a seed repeats |
//! | `report` | the page |
//! | [`request`] | what the streams ask |
//! | `run` | all of it in order |
//! | [`mod@schedule`] | from a seed to faults |
//! | [`table`] | how a stream may end |
//! | `shards` | the deployment's weights |
//! | `target` | the deployment under test |
//! | `watch` | looking at the cluster meanwhile |

pub mod answer;
mod client;
pub mod fault;
mod inflict;
mod leaks;
mod load;
mod picture;
mod random;
mod report;
pub mod request;
mod run;
pub mod schedule;
mod shards;
pub mod table;
mod target;
mod watch;

pub use picture::picture;
pub use report::page;
pub use run::{Happened, Options, Outcome, run};
pub use schedule::schedule;
pub use watch::Sample;
