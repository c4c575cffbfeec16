//! Why a launch ended early.

/// What a kernel did wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{kernel}`, PTX line {line}, block {block:?}, thread {thread} (lane {lane}): {cause}")]
pub struct Fault {
    /// Name of the entry point.
    pub kernel: String,
    /// Line of the PTX text.
    pub line: u32,
    /// Indices of the block.
    pub block: [u32; 3],
    /// Number of the thread in its block; of several, the first.
    pub thread: u32,
    /// The thread's lane in its warp.
    pub lane: u32,
    /// What happened.
    pub cause: Cause,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// No memory is there, or its end is crossed.
    #[error("{access} of {bytes} bytes at {space} address {address:#x}: {reason}")]
    OutOfBounds {
        /// `read`, `write` or `atomic`.
        access: &'static str,
        /// Bytes of the access.
        bytes: usize,
        /// State space.
        space: &'static str,
        /// Address in that space.
        address: u64,
        /// What is there instead.
        reason: String,
    },
    /// The address is no multiple of the access's size.
    #[error("{access} of {bytes} bytes at {space} address {address:#x} is misaligned")]
    Misaligned {
        /// `read`, `write` or `atomic`.
        access: &'static str,
        /// Bytes of the access.
        bytes: usize,
        /// State space.
        space: &'static str,
        /// Address in that space.
        address: u64,
    },
    /// `trap`.
    #[error("trap")]
    Trap,
    /// Lanes wait for lanes that have gone another way for good.
    #[error("lanes {waiting:#010x} wait for lanes {missing:#010x}, which never come")]
    LanesMissing {
        /// Lanes that arrived.
        waiting: u32,
        /// Named lanes that did not.
        missing: u32,
    },
    /// Threads wait at a barrier that can never complete.
    #[error("barrier {id} has {arrived} of {expected} threads, and none of the others can move")]
    Barrier {
        /// Number of the barrier.
        id: u32,
        /// Threads that arrived.
        arrived: u32,
        /// Threads needed.
        expected: u32,
    },
    /// The operands of an instruction are outside what it defines.
    #[error("{0}")]
    Operands(String),
    /// The launch did not end in time.
    #[error("the launch did not end in time")]
    Timeout,
}
