//! API keys: who may ask for what, and how much.
//!
//! | module | what it is |
//! |---|---|
//! | [`file`] | the keys as they are written down |
//! | [`scope`] | which deployments a key sees |
//! | [`store`] | the keys in use, by hash, read again when their file changes |
//! | [`caller`] | the key of a request |

pub mod caller;
pub mod file;
pub mod scope;
pub mod store;

pub use caller::Caller;
pub use file::{Key, Limits};
pub use scope::Scope;
pub use store::KeyStore;
