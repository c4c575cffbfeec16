//! Caches of what the API server knows, kept fresh by watches.
//!
//! | module | what |
//! |---|---|
//! | [`cache`] | one watch, own writes over it, and how far it is |
//! | [`entries`] | what a cache holds, and what of it changed |
//! | [`caches`] | all caches the operator decides from |

pub mod cache;
pub mod caches;
pub mod entries;

pub use cache::Cache;
pub use caches::{Caches, Changes};
pub use entries::Change;
