//! `POST /v1/chat/completions`.

pub mod convert;
pub mod handler;
pub mod types;
pub mod validate;
