//! What the exit codes mean.

use std::{io, process::ExitCode};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Done; for `plan`: everything has room; for `explain`: everything is ready.
    Done,
    /// It could not be done; a sentence on standard error says why. The command line itself is refused with 2.
    Failed,
    /// `plan`: something does not fit or has no room; `explain`: something is not ready.
    Not,
}

impl Code {
    /// As the shell sees it.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Not => 3,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

/// The output was a pipe whose reader has gone, as `head` does: nothing is wrong.
#[must_use]
pub fn nobody_reads(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
