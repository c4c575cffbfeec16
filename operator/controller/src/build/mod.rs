//! Objects the operator makes. Pure: the same input always makes the same object.
//!
//! | module | what |
//! |---|---|
//! | [`pod`] | the worker pod of a member |
//! | [`inspect`] | the pod that reads a checkpoint's headers |
//! | [`parts`] | what both pods share: volumes, security, ownership |
//! | [`bind`] | the patch that pins a gated pod to its node and lets it go |

pub mod bind;
pub mod inspect;
pub mod parts;
pub mod pod;
