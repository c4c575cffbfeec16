//! Collectives that need no network: for a rank alone, and for ranks that are threads of one process.

mod local;
mod solo;

pub use local::{LocalCollective, local_group};
pub use solo::Solo;
