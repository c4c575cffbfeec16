//! Caches of what the API server knows, kept fresh by watches.
//!
//! | module | what |
//! |---|---|
//! | [`cache`] | one reflector, own writes over it, and how far it is |
//! | [`caches`] | all caches the operator decides from |
//! | [`slim`] | what is dropped from objects before they are cached |

pub mod cache;
pub mod caches;
pub mod slim;

pub use cache::Cache;
pub use caches::Caches;
