//! Objects the operator makes. Pure: the same input always makes the same object.
//!
//! | module | what |
//! |---|---|
//! | [`pod`] | the worker pod of a member |
//! | `beside` | where pods of a group may be beside each other |
//! | [`placeholder`] | the pod that holds the room of a member while nodes are asked for |
//! | [`inspect`] | the pod that reads a checkpoint's headers |
//! | [`parts`] | what all these pods share: volumes, security, ownership |
//! | [`remote`] | what pods need whose weights come over the network |
//! | [`enrol`] | what a pod needs that enrols |
//! | [`threads`] | how many threads a pod's ranks compute with |
//! | [`bind`] | the patch that pins a gated pod to its node and lets it go |

mod beside;
pub mod bind;
pub mod enrol;
pub mod inspect;
pub mod parts;
pub mod placeholder;
pub mod pod;
pub mod remote;
pub mod threads;
