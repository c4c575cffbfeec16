//! Memory that processes share: `cuMemCreate` and what maps it. Backed by `memfd`, so that a file descriptor carries it
//! to another process, as with the real driver.

use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::error::{Code, Result, error, fail};
use super::mapping::Mapping;
use super::memory::{Allocation, Place};
use super::state::{Driver, Tables};

/// Sizes and addresses are multiples of this, as on real devices.
pub(super) const GRANULARITY: u64 = 2 << 20;

/// A piece of physical memory.
#[derive(Debug)]
pub(super) struct Shareable {
    file: OwnedFd,
    size: u64,
    /// The device that pays for it; none for memory of another process.
    device: Option<usize>,
}

fn whole(size: u64, what: &str) -> Result<()> {
    if size == 0 || !size.is_multiple_of(GRANULARITY) {
        fail!(
            InvalidValue,
            "{what} of {size:#x} is no multiple of the granularity {GRANULARITY:#x}"
        );
    }
    Ok(())
}

fn last_error() -> super::error::Error {
    error(Code::OutOfMemory, std::io::Error::last_os_error().to_string())
}

/// Memory of so many zeros.
fn zeros(size: u64) -> Result<OwnedFd> {
    // SAFETY: a constant name; the result is checked before use.
    let fd = unsafe { libc::memfd_create(c"llamero-gpu-emulator".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the descriptor is open.
    if unsafe { libc::ftruncate(fd, size as i64) } != 0 {
        return Err(last_error());
    }
    Ok(file)
}

impl Driver {
    /// `cuMemCreate`.
    pub(super) fn create(&self, size: u64, device: i32) -> Result<u64> {
        whole(size, "a size")?;
        let device = self.device(device)?;
        self.count_allocation(size)?;
        let file = zeros(size)?;
        let mut tables = self.tables();
        tables.memory.charge(device, size, self.config.memory)?;
        Ok(tables.share(Shareable {
            file,
            size,
            device: Some(device),
        }))
    }

    /// `cuMemExportToShareableHandle`: a descriptor that the caller owns.
    pub(super) fn export(&self, handle: u64) -> Result<RawFd> {
        let tables = self.tables();
        match tables.shareable(handle)?.file.try_clone() {
            Ok(file) => Ok(file.into_raw_fd()),
            Err(reason) => fail!(Unknown, "{reason}"),
        }
    }

    /// `cuMemImportFromShareableHandle`. The caller keeps its descriptor.
    pub(super) fn import(&self, fd: RawFd) -> Result<u64> {
        if fd < 0 {
            fail!(InvalidValue, "{fd} is no file descriptor");
        }
        // SAFETY: the caller passes an open descriptor, as the interface demands; a closed one is an error below.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let file = match borrowed.try_clone_to_owned() {
            Ok(file) => file,
            Err(reason) => fail!(InvalidValue, "file descriptor {fd}: {reason}"),
        };
        let size = match std::fs::File::from(file.try_clone().map_err(|_| last_error())?).metadata() {
            Ok(metadata) => metadata.len(),
            Err(reason) => fail!(InvalidValue, "file descriptor {fd}: {reason}"),
        };
        whole(size, "a shared allocation")?;
        Ok(self.tables().share(Shareable {
            file,
            size,
            device: None,
        }))
    }

    /// `cuMemRelease`. What is mapped stays.
    pub(super) fn release(&self, handle: u64) -> Result<()> {
        let mut tables = self.tables();
        tables.shareable(handle)?;
        if let Some(Shareable {
            size,
            device: Some(device),
            ..
        }) = tables.shareable.remove(&handle)
        {
            tables.memory.credit(device, size);
        }
        Ok(())
    }

    /// `cuMemAddressReserve`. Larger alignments than a page are met by reserving more.
    pub(super) fn reserve(&self, size: u64) -> Result<u64> {
        whole(size, "a range")?;
        let mapping = Mapping::reserve(size as usize)?;
        let base = mapping.base();
        self.tables().reservations.insert(base, Arc::new(mapping));
        Ok(base)
    }

    /// `cuMemAddressFree`.
    pub(super) fn unreserve(&self, base: u64, size: u64) -> Result<()> {
        let mut tables = self.tables();
        match tables.reservations.get(&base) {
            Some(mapping) if mapping.len() as u64 == size => {}
            _ => fail!(InvalidValue, "{size:#x} bytes at {base:#x} are no reservation"),
        }
        if tables.memory.find(base).is_some() {
            fail!(InvalidValue, "the range at {base:#x} is still mapped");
        }
        tables.reservations.remove(&base);
        Ok(())
    }

    /// `cuMemMap`: nobody may use it until `cuMemSetAccess`.
    pub(super) fn map(&self, address: u64, size: u64, offset: u64, handle: u64) -> Result<()> {
        whole(size, "a mapping")?;
        let mut tables = self.tables();
        let mapping = tables.reservation(address)?;
        if tables.memory.find(address).is_some() {
            fail!(InvalidValue, "{address:#x} is mapped already");
        }
        let shared = tables.shareable(handle)?;
        if offset.checked_add(size).is_none_or(|end| end > shared.size) {
            fail!(
                InvalidValue,
                "the mapping leaves the {} bytes of its memory",
                shared.size
            );
        }
        let at = (address - mapping.base()) as usize;
        if self.config.peer_writes_are_lost && shared.device.is_none() {
            mapping.attach(at, size as usize, zeros(offset + size)?.as_fd(), offset as i64)?;
        } else {
            mapping.attach(at, size as usize, shared.file.as_fd(), offset as i64)?;
        }
        let allocation = Allocation {
            size,
            place: Place::Mapped { read: 0, write: 0 },
            writable: true,
            mapping: Some(mapping),
        };
        tables.memory.insert(address, allocation);
        Ok(())
    }

    /// `cuMemUnmap`.
    pub(super) fn unmap(&self, address: u64, size: u64) -> Result<()> {
        let mut tables = self.tables();
        match tables.memory.find(address) {
            Some((base, found)) if base == address && found.size == size => {}
            _ => fail!(InvalidValue, "{size:#x} bytes at {address:#x} are no mapping"),
        }
        let mapping = tables.reservation(address)?;
        tables.memory.free(address)?;
        mapping.detach((address - mapping.base()) as usize, size as usize)
    }

    /// `cuMemSetAccess` for one device. `flags`: 0 none, 1 read, 3 read and write.
    pub(super) fn set_access(&self, address: u64, device: i32, flags: u32) -> Result<()> {
        let device = self.device(device)?;
        let mut tables = self.tables();
        let Some((base, allocation)) = tables.memory.find(address) else {
            fail!(InvalidValue, "nothing is mapped at {address:#x}");
        };
        let Place::Mapped { read, write } = allocation.place else {
            fail!(InvalidValue, "{address:#x} is no mapping");
        };
        let set = |mask: u64, on: bool| (mask & !(1 << device)) | u64::from(on) << device;
        let place = Place::Mapped {
            read: set(read, flags & 1 != 0),
            write: set(write, flags & 2 != 0),
        };
        tables.memory.set_place(base, place)
    }
}

impl Tables {
    fn share(&mut self, shareable: Shareable) -> u64 {
        let handle = self.handle();
        self.shareable.insert(handle, shareable);
        handle
    }

    fn shareable(&self, handle: u64) -> Result<&Shareable> {
        match self.shareable.get(&handle) {
            Some(shareable) => Ok(shareable),
            None => fail!(InvalidValue, "{handle:#x} is no memory handle"),
        }
    }

    fn reservation(&mut self, address: u64) -> Result<Arc<Mapping>> {
        let found = self
            .reservations
            .range(..=address)
            .next_back()
            .map(|(_, mapping)| mapping.clone());
        match found {
            Some(mapping) if address - mapping.base() < mapping.len() as u64 => Ok(mapping),
            _ => fail!(InvalidValue, "{address:#x} is not reserved"),
        }
    }
}
