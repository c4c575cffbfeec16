//! What is allocated: on devices, pinned on the host, and mapped from shareable handles.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::{Result, fail};
use super::mapping::Mapping;
use crate::exec::memory::{Global, Region};

/// Where memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Device(usize),
    /// Pinned: every device reaches it.
    Host,
    /// Mapped: devices reach it as `cuMemSetAccess` said. A bit for each, for reading and for writing.
    Mapped {
        read: u64,
        write: u64,
    },
}

/// One allocation.
#[derive(Debug, Clone)]
pub(super) struct Allocation {
    pub(super) size: u64,
    pub(super) place: Place,
    /// Constants are read-only for kernels.
    pub(super) writable: bool,
    /// Keeps the memory mapped; none for memory that the caller registered.
    pub(super) mapping: Option<Arc<Mapping>>,
}

/// All allocations by their first address.
#[derive(Debug, Default)]
pub(super) struct Allocations {
    all: BTreeMap<u64, Allocation>,
    /// Bytes in use on each device.
    used: Vec<u64>,
}

impl Allocations {
    pub(super) fn new(devices: usize) -> Self {
        Self {
            all: BTreeMap::new(),
            used: vec![0; devices],
        }
    }

    pub(super) fn used(&self, device: usize) -> u64 {
        self.used[device]
    }

    /// Take `size` bytes from what a device of `capacity` bytes has left.
    pub(super) fn charge(&mut self, device: usize, size: u64, capacity: u64) -> Result<()> {
        let left = capacity.saturating_sub(self.used[device]);
        if size > left {
            fail!(
                OutOfMemory,
                "{size} bytes are asked of device {device}, which has {left} of {capacity} left"
            );
        }
        self.used[device] += size;
        Ok(())
    }

    pub(super) fn credit(&mut self, device: usize, size: u64) {
        self.used[device] = self.used[device].saturating_sub(size);
    }

    pub(super) fn insert(&mut self, base: u64, allocation: Allocation) {
        self.all.insert(base, allocation);
    }

    /// Allocate on a device.
    pub(super) fn allocate(&mut self, device: usize, size: u64, capacity: u64) -> Result<u64> {
        self.charge(device, size, capacity)?;
        let Ok(mapping) = Mapping::new(size as usize, true) else {
            self.credit(device, size);
            fail!(OutOfMemory, "the host has no {size} bytes for device {device}");
        };
        let base = mapping.base();
        let allocation = Allocation {
            size,
            place: Place::Device(device),
            writable: true,
            mapping: Some(Arc::new(mapping)),
        };
        self.insert(base, allocation);
        Ok(base)
    }

    /// Give back what starts at `base`.
    pub(super) fn free(&mut self, base: u64) -> Result<Allocation> {
        let Some(allocation) = self.all.remove(&base) else {
            fail!(
                InvalidValue,
                "nothing was allocated at {base:#x}, or it was freed before"
            );
        };
        if let Place::Device(device) = allocation.place {
            self.credit(device, allocation.size);
        }
        Ok(allocation)
    }

    /// Give back everything on a device.
    pub(super) fn forget(&mut self, device: usize) {
        self.all
            .retain(|_, allocation| allocation.place != Place::Device(device));
        self.used[device] = 0;
    }

    /// The allocation that holds `address`, and its base.
    pub(super) fn find(&self, address: u64) -> Option<(u64, &Allocation)> {
        let (base, allocation) = self.all.range(..=address).next_back()?;
        (address - base < allocation.size).then_some((*base, allocation))
    }

    /// Change where the mapping at `base` may be used.
    pub(super) fn set_place(&mut self, base: u64, place: Place) -> Result<()> {
        match self.all.get_mut(&base) {
            Some(allocation) => allocation.place = place,
            None => fail!(InvalidValue, "nothing is mapped at {base:#x}"),
        }
        Ok(())
    }

    /// Check that `size` bytes at `address` lie in one allocation, and keep it alive.
    pub(super) fn span(&self, address: u64, size: u64) -> Result<Option<Arc<Mapping>>> {
        match self.find(address) {
            Some((base, allocation)) if address - base + size <= allocation.size => {
                Ok(allocation.mapping.clone())
            }
            Some((base, allocation)) => fail!(
                InvalidValue,
                "{size} bytes at {address:#x} leave the allocation of {} bytes at {base:#x}",
                allocation.size
            ),
            None => fail!(InvalidValue, "{address:#x} is no memory of a device"),
        }
    }

    /// What kernels of `device` may touch. `peers` are the devices whose memory it may reach.
    pub(super) fn reachable(&self, device: usize, peers: u64) -> (Global, Vec<Arc<Mapping>>) {
        let (mut regions, mut keep) = (Vec::new(), Vec::new());
        for (base, allocation) in &self.all {
            let (read, write) = match allocation.place {
                Place::Device(owner) => {
                    let reach = owner == device || peers >> owner & 1 != 0;
                    (reach, reach)
                }
                Place::Host => (true, true),
                Place::Mapped { read, write } => (read >> device & 1 != 0, write >> device & 1 != 0),
            };
            if read {
                keep.extend(allocation.mapping.clone());
                // SAFETY: the mapping is kept until the launch has ended; registered memory is the caller's promise.
                regions.push(unsafe { Region::new(*base, allocation.size, write && allocation.writable) });
            }
        }
        (Global::new(regions), keep)
    }
}
