//! Faults on demand.
//!
//! `fault=WHAT@WHEN` in the configuration. `WHAT` is `oom` (an allocation fails), `illegal` (a launch ends with an illegal
//! address, which stays), `ecc` (a launch ends with an uncorrectable memory error, which stays), `hang` (a launch never
//! ends) or `xid-N` (the management library tells of error N, and nothing else happens). `WHEN` is a number, the how-manieth allocation or launch from 1, or the path of a file: from when it exists.
//! `WHAT:DEVICE` is a fault of launches on one device only.

use std::path::PathBuf;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    OutOfMemory,
    Illegal,
    Ecc,
    Hang,
    /// An error that only the management library tells of.
    Xid(u32),
}

/// When it does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    Count(u64),
    File(PathBuf),
}

/// A fault that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    kind: Kind,
    /// None: any.
    device: Option<usize>,
    when: When,
}

impl Fault {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (kind, when) = text.split_once('@')?;
        let (kind, device) = match kind.split_once(':') {
            Some((kind, device)) => (kind, Some(device.parse().ok()?)),
            None => (kind, None),
        };
        let kind = match kind {
            "oom" => Kind::OutOfMemory,
            "illegal" => Kind::Illegal,
            "ecc" => Kind::Ecc,
            "hang" => Kind::Hang,
            _ => Kind::Xid(kind.strip_prefix("xid-")?.parse().ok()?),
        };
        let when = match when.parse() {
            Ok(count) => When::Count(count),
            Err(_) if when.starts_with('/') => When::File(when.into()),
            Err(_) => return None,
        };
        Some(Self { kind, device, when })
    }

    fn due(&self, count: u64) -> bool {
        match &self.when {
            When::Count(at) => *at == count,
            When::File(path) => path.exists(),
        }
    }

    fn has_happened(&self, count: u64) -> bool {
        match &self.when {
            When::Count(at) => *at <= count,
            When::File(path) => path.exists(),
        }
    }

    fn concerns(&self, device: usize) -> bool {
        self.device.is_none_or(|of| of == device)
    }
}

/// The fault of the `count`-th launch, which is on this device, if one is due.
pub(super) fn of_launch(faults: &[Fault], count: u64, device: usize) -> Option<Kind> {
    let concerned =
        |fault: &&Fault| !matches!(fault.kind, Kind::OutOfMemory | Kind::Xid(_)) && fault.concerns(device);
    let due = faults.iter().filter(concerned).find(|fault| fault.due(count));
    due.map(|fault| fault.kind)
}

/// The errors of a device, by their "Xid", that have happened by the `count`-th launch, in the order of the configuration. The same numbers as
/// NVIDIA's driver gives them.
pub(super) fn xids(faults: &[Fault], count: u64, device: usize) -> Vec<u32> {
    let happened = |fault: &&Fault| fault.has_happened(count) && fault.concerns(device);
    let numbers = faults
        .iter()
        .filter(happened)
        .filter_map(|fault| match fault.kind {
            Kind::Illegal => Some(31),
            Kind::Ecc => Some(48),
            Kind::Xid(number) => Some(number),
            Kind::OutOfMemory | Kind::Hang => None,
        });
    numbers.collect()
}

/// Whether an uncorrectable memory error has happened by the `count`-th launch.
pub(super) fn ecc_happened(faults: &[Fault], count: u64) -> bool {
    faults
        .iter()
        .filter(|fault| fault.kind == Kind::Ecc)
        .any(|fault| fault.has_happened(count))
}

/// Whether the `count`-th allocation fails.
pub(super) fn of_allocation(faults: &[Fault], count: u64) -> bool {
    faults
        .iter()
        .any(|fault| fault.kind == Kind::OutOfMemory && fault.due(count))
}
