//! API keys: who may ask for what, and how much.
//!
//! | module | what it is |
//! |---|---|
//! | [`file`] | the keys as they are written down |
//! | [`book`] | the keys in use, by hash, read again when their file changes |
//! | [`scope`] | which deployments a key sees |
//! | [`caller`] | the key of a request |

pub mod book;
pub mod caller;
pub mod file;
pub mod scope;

pub use book::KeyBook;
pub use caller::Caller;
pub use file::{Key, Limits};
pub use scope::Scope;
