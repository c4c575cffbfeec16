//! The memory plan says what forming takes.

use llamero_engine::{Backend, BackendError, FormSpec};

use super::group::{options, spec};
use super::tiny;
use crate::workspace::Workspace;
use crate::{CpuBackend, Kernel};

/// Each buffer is what the plan says.
#[test]
fn the_plan_is_what_is_allocated() {
    let folder = tiny::checkpoint(true);
    for tensor in [1, 2, 3, 8] {
        for rank in 0..tensor {
            let backend =
                CpuBackend::new(folder.path(), options(tensor, rank, 1, Kernel::detect().level())).unwrap();
            let spec = spec(llamero_engine::Era::default(), 64);
            let plan = backend.memory(&spec).unwrap();
            let tokens = spec.max_batched_tokens as usize;
            let work = Workspace::new(&backend.shape, &backend.programs, backend.frequencies(), tokens);
            let (buffers, logits, rope) = work.allocated();
            assert_eq!(rope as u64, plan.rope);
            let states = spec.steps_in_flight as usize * tokens * backend.shape.hidden * 2;
            assert_eq!((logits + states) as u64, plan.logits);
            assert!(buffers as u64 <= plan.workspace);
            assert_eq!(
                tensor == 1,
                buffers as u64 == plan.workspace,
                "buffers for exchanges"
            );
        }
    }
}

/// What sizing grants is what one sequence needs, at every block size: the fault was that blocks of 16 tokens cost half as
/// much again.
#[test]
fn true_8b_layers_form_with_what_sizing_grants() {
    const CONTEXT: u32 = 131_072;
    let folder = tiny::sparse_8b(2);
    let backend = CpuBackend::new(folder.path(), options(1, 0, 1, Kernel::detect().level())).unwrap();
    let summary =
        llamero_checkpoint::inspect::inspect(folder.path(), llamero_checkpoint::Topology::tensor(1))
            .unwrap()
            .summary;
    let granted = u64::from(CONTEXT) * summary.plans[0].kv_bytes_per_token_per_rank;
    assert_eq!(granted, 1_073_741_824);
    for block_size in [16, 32, 64, 128, 256] {
        let spec = FormSpec {
            max_context: CONTEXT,
            block_size,
            kv_bytes: granted,
            ..spec(llamero_engine::Era::default(), 64)
        };
        let plan = backend.memory(&spec).unwrap();
        assert_eq!(
            plan.blocks(granted),
            CONTEXT / block_size,
            "blocks of {block_size}"
        );
    }
}

/// The same, formed. Weights are holes of a sparse file.
#[test]
fn a_sparse_8b_forms_and_answers() {
    let folder = tiny::sparse_8b(2);
    let mut backend = CpuBackend::new(folder.path(), options(1, 0, 1, Kernel::detect().level())).unwrap();
    backend.load(&llamero_engine::Unwatched).unwrap();
    let era = llamero_engine::Era::default();
    let mut spec = FormSpec {
        max_context: 131_072,
        max_batched_tokens: 64,
        kv_bytes: 1_073_741_824,
        ..spec(era, 64)
    };
    let mesh = || Box::new(llamero_engine::mesh::TcpMesh::alone(era));
    let capacity = backend.form(&spec, mesh(), &mut |_| {}).unwrap();
    assert_eq!(capacity.blocks, 8192);
    spec.kv_bytes -= 1;
    assert!(matches!(
        backend.form(&spec, mesh(), &mut |_| {}),
        Err(BackendError::Unusable(_))
    ));
}
