//! Exit codes of the program.

use llamero_proto::v1::ExitKind;

/// Something failed that may succeed another time.
pub const FAILED: u8 = 1;
/// It cannot work as configured (command line, checkpoint, memory); trying again does not help before something is changed.
/// Also what a wrong command line ends with.
pub const UNUSABLE: u8 = 2;
/// An invariant of the program does not hold.
pub const BUG: u8 = 3;
/// What Rust ends with after a panic.
const PANIC: i32 = 101;

/// What an exit code means; none when a signal ended the process.
#[must_use]
pub fn kind(code: Option<i32>) -> ExitKind {
    match code {
        Some(code) if code == i32::from(UNUSABLE) => ExitKind::Unusable,
        Some(code) if code == i32::from(BUG) || code == PANIC => ExitKind::Bug,
        _ => ExitKind::Crashed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whether_another_start_can_help() {
        assert_eq!(kind(Some(2)), ExitKind::Unusable);
        assert_eq!(kind(Some(3)), ExitKind::Bug);
        assert_eq!(kind(Some(101)), ExitKind::Bug);
        assert_eq!(kind(Some(1)), ExitKind::Crashed);
        assert_eq!(kind(None), ExitKind::Crashed);
    }
}
