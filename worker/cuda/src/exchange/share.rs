//! Brings the areas of all ranks together: each rank makes its own, and maps those of its peers.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{result, sys};
use llamero_engine::mesh::files::swap_files;
use llamero_engine::mesh::local::all_to_all_among;
use llamero_engine::{BackendError, Label, Mesh};

use super::memory::SharedMemory;
use crate::device::{Device, Uuid};
use crate::error::{bug, refused, unusable};
use crate::ops::Ops;
use crate::ops::exchange::FLAGS;

/// A rank's area, as this rank maps it.
pub(super) struct Area {
    pub(super) rank: u32,
    pub(super) gpu: Uuid,
    pub(super) memory: SharedMemory,
}

/// The other ranks of this one's stage.
pub(super) fn stage_peers(mesh: &dyn Mesh) -> Vec<u32> {
    let (members, rank) = (mesh.members(), mesh.rank());
    let stage = members.stage(members.topology().stage(rank)).iter().copied();
    stage.filter(|peer| *peer != rank).collect()
}

/// The areas of all ranks of the stage in order of their indices: this rank's own, zeroed, and those of its peers, for which it waits for
/// `patience`.
pub(super) fn share(
    mesh: &mut dyn Mesh,
    ops: &Ops,
    bytes: u64,
    (patience, same_gpu): (Duration, bool),
) -> Result<Vec<Area>, BackendError> {
    let (rank, device) = (mesh.rank(), ops.device());
    let peers = stage_peers(mesh);
    if let Some(far) = peers.iter().find(|peer| !mesh.is_local(**peer)) {
        return Err(unusable(format!(
            "rank {far} is in another pod, and tensor-parallel ranks on GPUs have to be in one: use a node that has as many GPUs \
             as there are ranks, or fewer tensor-parallel ranks and more pipeline stages"
        )));
    }
    // Nobody else has the memory yet, so its flags are down before anybody raises one.
    let own = own(ops, bytes, 0)?;
    let mut introduction = device.uuid.0.to_vec();
    introduction.extend(own.size().to_le_bytes());
    let label = Label { step: 0, tag: 0 };
    let theirs = all_to_all_among(mesh, &peers, label, &introduction, patience)?;
    let mut gpus = Vec::new();
    for (peer, theirs) in peers.iter().zip(&theirs) {
        let (uuid, size) = theirs.split_at(16);
        if size != own.size().to_le_bytes() {
            return Err(bug(format!("rank {peer} shares an area of another size")));
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(uuid);
        let gpu = Uuid(bytes);
        reaches(ops, *peer, gpu, same_gpu)?;
        gpus.push(gpu);
    }
    let file = own.export().map_err(refused)?;
    let files = swap_files(mesh, &peers, file.as_fd(), Instant::now() + patience)?;
    let size = own.size();
    let mut all = Vec::new();
    for ((rank, gpu), file) in peers.iter().zip(gpus).zip(files) {
        let memory = SharedMemory::import(&device.context, file.as_fd(), size);
        all.push(Area {
            rank: *rank,
            gpu,
            memory: memory.map_err(refused)?,
        });
    }
    // Peers are in order of rank, as members are.
    let index = peers.iter().take_while(|peer| **peer < rank).count();
    let own = Area {
        rank,
        gpu: device.uuid,
        memory: own,
    };
    all.insert(index, own);
    Ok(all)
}

/// Whether the GPU's memory can be given to other processes at all.
fn can_share(device: &Device) -> Result<(), BackendError> {
    let needed = [
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
    ];
    for attribute in needed {
        if device.context.attribute(attribute).map_err(refused)? == 0 {
            return Err(unusable(format!(
                "{} cannot share its memory between processes by file descriptors ({attribute:?} is 0), which ranks on several \
                 GPUs need: use one rank, or a driver and a virtual machine that let it",
                device.name
            )));
        }
    }
    Ok(())
}

/// An area of this rank: zeros, and each flag at this number.
pub(super) fn own(ops: &Ops, bytes: u64, flag: u32) -> Result<SharedMemory, BackendError> {
    let device = ops.device();
    can_share(device)?;
    let memory = SharedMemory::create(&device.context, bytes).map_err(refused)?;
    let (address, size, stream) = (memory.address(), memory.size() as usize, ops.stream());
    let flags = vec![flag; FLAGS as usize / size_of::<u32>()];
    // SAFETY: the memory has as many bytes, flags first, and is mapped for this device; the host's words live until the stream
    // was waited for.
    unsafe {
        result::memset_d8_async(address, 0, size, stream.cu_stream()).map_err(refused)?;
        result::memcpy_htod_async(address, &flags, stream.cu_stream()).map_err(refused)?;
    }
    stream.synchronize().map_err(refused)?;
    Ok(memory)
}

/// Whether this rank's GPU reaches the memory of a peer's.
fn reaches(ops: &Ops, peer: u32, theirs: Uuid, same_gpu: bool) -> Result<(), BackendError> {
    let mine = ops.device();
    if mine.uuid == theirs && same_gpu {
        return Ok(());
    }
    if mine.uuid == theirs {
        return Err(unusable(format!(
            "rank {peer} has {theirs}, too: each rank needs a GPU of its own. Give the pod as many GPUs as it has ranks"
        )));
    }
    let Some(other) = crate::device::number(theirs).map_err(refused)? else {
        return Err(unusable(format!(
            "rank {peer} has {theirs}, which this process does not see: every rank of a pod has to see all of its GPUs"
        )));
    };
    let mut can = 0;
    let (own, other) = (
        mine.context.cu_device(),
        result::device::get(other).map_err(refused)?,
    );
    // SAFETY: both are devices, and the pointer leads to a number.
    unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, own, other) }
        .result()
        .map_err(refused)?;
    if can != 0 {
        return Ok(());
    }
    Err(unusable(format!(
        "{} and {theirs} of rank {peer} do not reach each other's memory: use GPUs of one NVLink or PCIe switch, or one rank",
        mine.uuid
    )))
}
