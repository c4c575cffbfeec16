//! The only writer. Carries out a plan's steps beside the loop; whatever fails is decided again.
//!
//! | module | what |
//! |---|---|
//! | [`error`] | why an effect did not happen, and whose turn it is |
//! | [`index`] | the objects of a pass by name |
//! | [`actuators`] | chains that are under way, and when to try again |
//! | [`effects`] | runs steps in order: one chain a group |
//! | [`refusals`] | what was refused, as input of the next decision |
//! | [`writer`] | fenced access to the API server |
//! | `owned` | create, patch and delete single objects of an owner |
//! | [`proofs`] | pods that are known to exist without a cache |
//! | [`objects`] | LlamaGroups, and the scale of a LlamaDeployment |
//! | [`children`] | objects that are server-side applied |
//! | [`revisions`] | kept snapshots |
//! | [`pods`] | create, bind and delete pods |
//! | [`calls`] | `Form` and `Drain` |
//! | [`peers`] | calls to worker pods that are under way |
//! | [`statuses`] | status of deployments and groups |

pub mod actuators;
pub mod calls;
pub mod children;
pub mod effects;
pub mod error;
pub mod index;
pub mod objects;
mod owned;
pub mod peers;
pub mod pods;
pub mod proofs;
pub mod refusals;
pub mod revisions;
pub mod statuses;
#[cfg(test)]
mod tests;
pub mod writer;

pub use actuators::{Actuators, Done, Hands};
pub use effects::{Failure, Outcome};
pub use error::EffectError;
pub use index::{Index, Subject};
pub use refusals::Refusals;
pub use writer::Writer;
