//! Caches of what the API server knows, kept fresh by watches.
//!
//! | module | what |
//! |---|---|
//! | [`cache`] | one watch, own writes over it, and how far it is |
//! | [`entries`] | what a cache holds, and what of it changed |
//! | [`scoped`] | the same over several namespaces |
//! | [`caches`] | all caches the operator decides from |

pub mod cache;
pub mod caches;
pub mod entries;
pub mod scoped;

pub use cache::Cache;
pub use caches::{Caches, Changes, Scopes};
pub use entries::Change;
pub use scoped::{Scope, Scoped};
