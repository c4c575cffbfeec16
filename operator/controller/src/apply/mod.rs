//! The only writer. Carries out a plan's steps; whatever fails is left to the next pass.
//!
//! | module | what |
//! |---|---|
//! | [`error`] | why an effect did not happen, and whose turn it is |
//! | [`view`] | the objects of a pass by name |
//! | [`effects`] | runs steps in order: one chain a group, chains side by side |
//! | [`holds`] | refused steps wait before they are tried again |
//! | [`writer`] | fenced access to the API server |
//! | [`objects`] | LlamaGroups, Services, budgets |
//! | [`pods`] | create, bind and delete pods |
//! | [`calls`] | `Form` and `Drain` |
//! | [`statuses`] | status of deployments and groups |

pub mod calls;
pub mod effects;
pub mod error;
pub mod holds;
pub mod objects;
pub mod pods;
pub mod statuses;
pub mod view;
pub mod writer;

pub use effects::{Failure, Outcome, apply};
pub use error::EffectError;
pub use holds::Holds;
pub use view::{Subject, View};
pub use writer::Writer;
