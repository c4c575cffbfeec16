//! One rank's part of a group: it forms, executes plans and answers. Rank 0's own compute and every follower run this
//! same loop; only the link to the leader differs.
//!
//! | module | what it is |
//! |---|---|
//! | [`link`] | the member's end of the link to the leader |
//! | [`steps`] | the steps that were submitted and not released, one message at a time |
//! | [`era`] | the loop of one era |
//! | [`share`] | the share of the model that a rank has among those that are there |
//! | [`watch`] | tells the leader and the state that a slow step is not a hang |

pub(super) mod era;
pub(super) mod link;
mod share;
pub(super) mod steps;
mod watch;

pub(super) use era::{MemberEra, serve_era};
pub(super) use link::{MemberLink, Reports};
