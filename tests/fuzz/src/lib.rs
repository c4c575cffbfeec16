//! Bad input on purpose, on stable Rust: inputs that are kept are changed at random, and whatever comes out must be taken or refused: no panic, no
//! more memory than a bound by the input's size, no hang. An allocator counts what the thread takes, so that targets run side by side; those that work on
//! threads of their own run alone. Changed inputs whose outcome is new are changed further.
//!
//! The same seed gives the same inputs as long as time does not end them. A run lasts [`SECONDS`] unless `LLAMERO_FUZZ_SECONDS` says otherwise;
//! then inputs with new outcomes are kept in `.local/fuzz`, and the next such run begins with them; with `LLAMERO_FUZZ_KEEP=1` (0 is none) the short ones
//! among them go into the repository's `corpus`, some for each target. `LLAMERO_FUZZ_SEED` chooses others.
//!
//! | module | what it holds |
//! |---|---|
//! | `corpus` | inputs that are kept |
//! | `drive` | running a target |
//! | `memory` | what taking an input takes of memory |
//! | `mutate` | changing an input |
//! | `random` | numbers that a seed repeats |
#![deny(unsafe_code)]

mod corpus;
mod drive;
#[allow(
    unsafe_code,
    reason = "an allocator is given to the whole program by an unsafe trait"
)]
mod memory;
mod mutate;
mod random;

pub use drive::{SECONDS, Target, drive};
pub use mutate::Shape;
