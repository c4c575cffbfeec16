//! From share to share: the weights of a rank that others leave and come back to.

use std::cell::RefCell;

use llamero_checkpoint::piece::rank_bytes;
use llamero_checkpoint::{Members, Topology};
use llamero_engine::{Backend, BackendError, LoadProgress, LoadWatch};
use rustix::fs::{MemfdFlags, memfd_create};

use super::group::options;
use super::tiny;
use crate::layout::Role;
use crate::{CpuBackend, CpuOptions, Kernel};

#[derive(Default)]
struct Heard(RefCell<Option<LoadProgress>>);

impl LoadWatch for Heard {
    fn progress(&self, progress: LoadProgress) {
        self.0.replace(Some(progress));
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// All that is multiplied with, looked up or added: what stands between tensors is of no account.
fn tensors(backend: &CpuBackend) -> Vec<Vec<u8>> {
    let weights = backend.weights.as_ref().unwrap();
    assert!(weights.is_complete());
    let (layout, hidden) = (weights.layout(), backend.shape.hidden);
    let floats = |at| bytemuck::cast_slice(weights.floats(at, hidden)).to_vec();
    let mut all = Vec::new();
    let matrix = |at| {
        let matrix = weights.matrix(at);
        [
            matrix.weights.to_vec(),
            bytemuck::cast_slice(matrix.scale).to_vec(),
        ]
    };
    for layer in &layout.layers {
        all.extend([floats(layer.input_norm), floats(layer.post_norm)]);
        all.extend(Role::ALL.iter().flat_map(|role| matrix(layer.matrix(*role))));
    }
    if let Some(head) = layout.head {
        all.push(floats(head.norm));
        all.extend(matrix(head.matrix));
    }
    if backend.shape.has_embedding {
        let mut row = vec![0u16; hidden];
        for token in 0..backend.shape.vocab_width() {
            weights.embed(token, &mut row);
            all.push(bytemuck::cast_slice(&row).to_vec());
        }
    }
    all
}

fn loaded(folder: &tempfile::TempDir, options: CpuOptions) -> (CpuBackend, u64) {
    let mut backend = CpuBackend::new(folder.path(), options).unwrap();
    let heard = Heard::default();
    backend.load(&heard).unwrap();
    let read = heard.0.borrow().unwrap().read;
    (backend, read)
}

/// Take one share after the other, in a memory file and without one, and compare with ranks that began with them.
fn walk(folder: &tempfile::TempDir, rank: u32, topology: Topology, losses: &[&[u32]]) {
    let of = |lost: &[u32]| CpuOptions {
        members: Members::new(topology, lost).unwrap(),
        ..options(1, rank, 1, Kernel::detect().level())
    };
    let file = memfd_create("weights", MemfdFlags::CLOEXEC).unwrap();
    let in_file = || Some(file.try_clone().unwrap());
    for memory in [None, in_file()] {
        let is_file = memory.is_some();
        let (mut backend, mut read) = loaded(folder, CpuOptions { memory, ..of(&[]) });
        for lost in losses {
            let members = Members::new(topology, lost).unwrap();
            let (fresh, whole_read) = loaded(folder, of(lost));
            let (before, is_part) = (read, backend.shard.contains_all(&fresh.shard));
            let heard = Heard::default();
            backend.reshape(&members, &heard).unwrap();
            let total = rank_bytes(&backend.model, &backend.shard);
            if let Some(heard) = *heard.0.borrow() {
                assert_eq!((heard.loaded, heard.total), (total, total), "{members}");
            }
            read = backend.read;
            match is_part {
                true => assert_eq!(read, before, "{members}: nothing lacked"),
                false => assert!(
                    read > before && read - before < whole_read,
                    "{members}: {read} after {before}, of {whole_read}"
                ),
            }
            assert!(tensors(&backend) == tensors(&fresh), "{members}, file {is_file}");
            assert_eq!(backend.members(), &members);
            if is_file {
                // The next process of this rank is told the members and finds their share.
                let next = CpuOptions {
                    memory: in_file(),
                    former: Some(members.clone()),
                    ..of(&[])
                };
                let (next, next_read) = loaded(folder, next);
                assert_eq!((next.members(), next_read), (&members, 0));
                assert!(tensors(&next) == tensors(&fresh), "{members}, found");
            }
        }
    }
}

#[test]
fn a_rank_takes_over_what_it_lacks_and_gives_it_back() {
    let eight: [&[u32]; 7] = [&[3], &[3, 6], &[3], &[], &[6, 2], &[5, 4], &[]];
    for (fp8, tied) in [(true, false), (false, true)] {
        let folder = tiny::checkpoint_of(fp8, 2, tied);
        for rank in [0, 1, 7] {
            walk(&folder, rank, Topology::tensor(8), &eight);
        }
        let stages = Topology {
            tensor: 2,
            pipeline: 2,
        };
        walk(&folder, 2, stages, &[&[3], &[1], &[3, 1], &[]]);
    }
}

#[test]
fn weights_that_cannot_be_completed_are_not_taken_for_weights() {
    let folder = tiny::checkpoint(true);
    let members = Members::new(Topology::tensor(2), &[1]).unwrap();
    let file = memfd_create("weights", MemfdFlags::CLOEXEC).unwrap();
    let of = || CpuOptions {
        memory: Some(file.try_clone().unwrap()),
        former: Some(members.clone()),
        ..options(2, 0, 1, Kernel::detect().level())
    };
    let (mut backend, _) = loaded(&folder, of());
    struct Stops;
    impl LoadWatch for Stops {
        fn progress(&self, _: LoadProgress) {}
        fn is_cancelled(&self) -> bool {
            true
        }
    }
    let error = backend.reshape(&members, &Stops).unwrap_err();
    assert!(matches!(error, BackendError::Cancelled), "{error}");
    assert!(backend.weights.is_none());
    let (next, read) = loaded(&folder, of());
    assert!(read > 0 && next.members().lost().is_empty());
}
