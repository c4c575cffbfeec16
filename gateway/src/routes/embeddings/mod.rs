//! `POST /v1/embeddings`.
//!
//! | module | what it is |
//! |---|---|
//! | [`fields`] | every field of a request |
//! | [`request`] | a request as it is read, and the question to the worker |
//! | [`objects`] | the answer |
//! | [`handler`] | the handler |

pub mod fields;
pub mod handler;
pub mod objects;
pub mod request;
