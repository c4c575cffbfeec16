//! `POST /v1/completions`.

pub mod convert;
pub mod handler;
pub mod types;
pub mod validate;
