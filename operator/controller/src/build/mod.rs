//! Objects the operator makes. Pure: the same input always makes the same object.
//!
//! | module | what |
//! |---|---|
//! | [`pod`] | the worker pod of a member |
//! | [`inspect`] | the pod that reads a checkpoint's headers |
//! | [`parts`] | what both pods share: volumes, security, ownership |
//! | [`hub`] | what pods need whose weights come from a Hub |
//! | [`enrol`] | what a pod needs that enrols |
//! | [`threads`] | how many threads a pod's ranks compute with |
//! | [`bind`] | the patch that pins a gated pod to its node and lets it go |

pub mod bind;
pub mod enrol;
pub mod inspect;
pub mod parts;
pub mod pod;
pub mod remote;
pub mod threads;
