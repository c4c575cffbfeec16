//! `GET /v1/models` and `GET /v1/models/{id}`.

pub mod convert;
pub mod handler;
pub mod types;
