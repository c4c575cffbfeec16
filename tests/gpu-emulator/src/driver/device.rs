//! Attributes of a device, by compute capability.

use super::config::{Config, Mode};
use super::error::{Result, fail};

/// What occupancy and launches are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) shared_per_block: u32,
    pub(super) shared_per_multiprocessor: u32,
    pub(super) threads_per_multiprocessor: u32,
    pub(super) blocks_per_multiprocessor: u32,
}

/// Shared memory that every block costs beside its own.
pub(super) const RESERVED_SHARED: u32 = 1024;
/// Shared memory of a block that did not ask for more.
pub(super) const DEFAULT_SHARED: u32 = 48 << 10;
/// Registers of a multiprocessor.
pub(super) const REGISTERS: u32 = 64 << 10;
/// Physical registers of a thread. PTX has none, so a middling number is assumed.
pub(super) const REGISTERS_PER_THREAD: u32 = 64;

/// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
pub(super) fn limits(capability: (u32, u32)) -> Limits {
    let (shared, threads, blocks) = match capability {
        (8, 0) => (164, 2048, 32),
        (8, 6) => (100, 1536, 16),
        (8, 9) => (100, 1536, 24),
        (12, _) => (100, 1536, 24),
        _ => (228, 2048, 32),
    };
    Limits {
        shared_per_block: (shared - 1) << 10,
        shared_per_multiprocessor: shared << 10,
        threads_per_multiprocessor: threads,
        blocks_per_multiprocessor: blocks,
    }
}

/// Blocks that a multiprocessor holds at once.
pub(super) fn occupancy(config: &Config, threads: u32, shared: u32) -> u32 {
    let limits = limits(config.capability);
    let warps = threads.div_ceil(32).max(1);
    let by_threads = limits.threads_per_multiprocessor / (32 * warps);
    let by_registers = REGISTERS / (REGISTERS_PER_THREAD * 32 * warps);
    let by_shared = limits.shared_per_multiprocessor / (shared + RESERVED_SHARED);
    by_threads
        .min(by_registers)
        .min(by_shared)
        .min(limits.blocks_per_multiprocessor)
}

/// `CUdevice_attribute` to its value. Numbers as in `cuda.h`.
pub(super) fn attribute(config: &Config, device: usize, attribute: u32) -> Result<i32> {
    let limits = limits(config.capability);
    let value = match attribute {
        1 => 1024,                        // threads of a block
        2 | 3 => 1024,                    // block x, y
        4 => 64,                          // block z
        5 => i32::MAX,                    // grid x
        6 | 7 => 65_535,                  // grid y, z
        8 => DEFAULT_SHARED as i32,       // shared memory of a block
        9 => 64 << 10,                    // constant memory
        10 => 32,                         // warp size
        11 => i32::MAX,                   // pitch
        12 | 82 => REGISTERS as i32,      // registers of a block, of a multiprocessor
        13 => 1_980_000,                  // clock, kHz
        15 | 19 | 31 | 32 | 40 | 41 => 1, // overlap, mapped host memory, concurrency, ECC, copies, one address space
        16 => config.multiprocessors as i32,
        17 | 18 => 0, // kernel timeout, integrated
        20 => match config.mode {
            Mode::Default => 0,
            Mode::Prohibited => 2,
            Mode::Taken => 3,
        },
        33 => device as i32 + 1, // PCI bus
        34 | 35 | 50 => 0,       // PCI device, TCC, PCI domain
        36 => 2_619_000,         // memory clock, kHz
        37 => 5120,              // bus width, bits
        38 => 50 << 20,          // L2 bytes
        39 => limits.threads_per_multiprocessor as i32,
        75 => config.capability.0 as i32,
        76 => config.capability.1 as i32,
        78 | 79 | 80 | 95 | 102 | 103 => 1, // priorities, caching, cooperative launch, VMM, file descriptors
        81 => limits.shared_per_multiprocessor as i32,
        83 | 84 | 86 | 88 | 89 | 96 | 99 => 0, // managed memory, boards, pageable access
        97 => limits.shared_per_block as i32,  // at most, when asked for
        106 => limits.blocks_per_multiprocessor as i32,
        111 => RESERVED_SHARED as i32,
        115 => 1,             // stream-ordered allocation
        116 | 117 | 119 => 0, // GPUDirect RDMA, pool handle types
        128 | 132 | 133 => 0, // DMA buffers, multicast
        other => fail!(
            InvalidValue,
            "the emulator does not know device attribute {other}"
        ),
    };
    Ok(value)
}

/// A device's name says what it is not.
pub(super) fn name(config: &Config) -> String {
    format!(
        "Llamero emulated GPU sm_{}{}",
        config.capability.0, config.capability.1
    )
}

/// 16 bytes that differ from device to device and stay the same from run to run.
pub(super) fn uuid(device: usize) -> [u8; 16] {
    let mut uuid = *b"llamero-emulate\0";
    uuid[15] = device as u8;
    uuid
}
