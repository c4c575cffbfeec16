//! Exit codes of the program.

/// Something failed that may succeed another time.
pub const FAILED: u8 = 1;
/// The input (command line, checkpoint) cannot be used; trying again does not help.
pub const INPUT_UNUSABLE: u8 = 2;
