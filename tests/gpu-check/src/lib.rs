//! The check of the CUDA backend: on the emulated driver in tests, and in one folder that runs on a real GPU.
//!
//! | module | what it is |
//! |---|---|
//! | [`model`] | seeded models of any Llama shape |
//! | [`drive`] | a leader that feeds a backend |
//! | [`agree`] | how far two backends are apart |
//! | [`speed`] | bandwidth, decode and prefill of true shapes |
//! | [`processes`] | rank processes that share a GPU, one of which is killed |
//! | [`stages`] | what the check runs, one stage after the other |
//! | [`table`] | the results as one table that names the card |

#![forbid(unsafe_code)]

pub mod agree;
pub mod drive;
pub mod model;
pub mod processes;
pub mod speed;
pub mod stages;
pub mod table;
