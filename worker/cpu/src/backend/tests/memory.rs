//! The memory plan says what forming takes.

use llamero_checkpoint::Topology;
use llamero_engine::{Backend, BackendError, FormLimits, FormSpec};

use super::group::{limits, options, spec};
use super::tiny;
use crate::lora::LoraLimits;
use crate::workspace::Workspace;
use crate::{CpuBackend, CpuOptions, Kernel, WorkspaceNeed};

/// Each buffer is what the plan says.
#[test]
fn the_plan_is_what_is_allocated() {
    let folder = tiny::checkpoint(true);
    for (tensor, adapters) in [(1, 0), (2, 0), (3, 0), (8, 0), (1, 3), (3, 3)] {
        for rank in 0..tensor {
            let backend =
                CpuBackend::new(folder.path(), options(tensor, rank, 1, Kernel::detect().level())).unwrap();
            let mut spec = spec(llamero_engine::Era::default(), 64);
            spec.limits.max_adapters = adapters;
            spec.limits.max_adapter_rank = 5 * adapters;
            let plan = backend.memory(&spec).unwrap();
            let tokens = spec.limits.max_batched_tokens as usize;
            let room = (tokens, LoraLimits::of(&spec.limits));
            let work = Workspace::new(&backend.shape, &backend.programs, backend.frequencies(), room);
            let (buffers, logits, rope) = work.allocated();
            assert_eq!(rope as u64, plan.rope);
            let states = spec.limits.steps_in_flight as usize * tokens * backend.shape.hidden * 2;
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

/// Only the last stage takes room for logits, only the first and the last take room for a table, and each has its own layers.
#[test]
fn stages_take_what_is_theirs() {
    let folder = tiny::checkpoint_of(true, 5, false);
    let members = Topology {
        tensor: 1,
        pipeline: 3,
    };
    let plans = [0, 1, 2].map(|rank| {
        let options = CpuOptions {
            members: members.into(),
            ..options(1, rank, 1, Kernel::detect().level())
        };
        let backend = CpuBackend::new(folder.path(), options).unwrap();
        let plan = backend.memory(&spec(llamero_engine::Era::default(), 64)).unwrap();
        let room = (64, LoraLimits::default());
        let work = Workspace::new(&backend.shape, &backend.programs, backend.frequencies(), room);
        assert_eq!(work.allocated().1 == 0, rank != 2);
        plan
    });
    let [first, middle, last] = plans;
    assert_eq!((first.logits, middle.logits), (0, 0));
    assert!(last.logits > 0);
    // 2, 2 and 1 layers.
    assert_eq!(first.kv_block, middle.kv_block);
    assert_eq!(first.kv_block, 2 * last.kv_block);
    let table = u64::from(tiny::VOCAB) * 96 * 2;
    // Tensors start at pages.
    assert!(first.weights + 4096 > middle.weights + table);
    assert!(last.weights > middle.weights / 2);
}

/// Limits that ask for more than 2⁶⁴ bytes are planned as more than there ever is: they neither come out as a small need
/// nor end the rank.
#[test]
fn overflow_outside_kernels_is_noticed() {
    let folder = tiny::checkpoint(true);
    let backend = CpuBackend::new(folder.path(), options(1, 0, 1, Kernel::detect().level())).unwrap();
    let mut spec = spec(llamero_engine::Era::default(), 64);
    spec.limits.max_batched_tokens = u32::MAX;
    spec.limits.steps_in_flight = u32::MAX;
    spec.limits.max_adapters = u32::MAX;
    spec.limits.max_adapter_rank = u32::MAX;
    let plan = backend.memory(&spec).unwrap();
    assert_eq!(
        (plan.workspace, plan.logits, plan.adapters),
        (u64::MAX, u64::MAX, u64::MAX)
    );
    assert_eq!(plan.fixed(), u64::MAX);
}

/// What sizing grants is what one sequence needs, at every block size: the fault was that blocks of 16 tokens cost half as
/// much again.
#[test]
fn true_8b_layers_form_with_what_sizing_grants() {
    const CONTEXT: u32 = 131_072;
    let folder = tiny::sparse(&tiny::WIDTHS_8B, 2);
    let backend = CpuBackend::new(folder.path(), options(1, 0, 1, Kernel::detect().level())).unwrap();
    let summary =
        llamero_checkpoint::inspect::inspect(folder.path(), llamero_checkpoint::Topology::tensor(1))
            .unwrap()
            .summary;
    let granted = u64::from(CONTEXT) * summary.plans[0].kv_bytes_per_token_per_rank;
    assert_eq!(granted, 1_073_741_824);
    for block_size in [16, 32, 64, 128, 256] {
        let limits = FormLimits {
            max_context: CONTEXT,
            block_size,
            ..limits(64)
        };
        let spec = FormSpec {
            era: llamero_engine::Era::default(),
            limits,
            kv_bytes: granted,
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
    let folder = tiny::sparse(&tiny::WIDTHS_8B, 2);
    let mut backend = CpuBackend::new(folder.path(), options(1, 0, 1, Kernel::detect().level())).unwrap();
    backend.load(&llamero_engine::Unwatched).unwrap();
    let era = llamero_engine::Era::default();
    let limits = FormLimits {
        max_context: 131_072,
        max_batched_tokens: 64,
        ..limits(64)
    };
    let mut spec = FormSpec {
        era,
        limits,
        kv_bytes: 1_073_741_824,
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

/// What sizing is told is what forming takes: never less, and not much more. A constant of 256 MiB was less than a quarter of
/// what an 8B needs for 4,096 tokens a step.
#[test]
fn sizing_is_told_what_large_steps_take() {
    for (widths, tokens, tensor, at_least) in [
        (tiny::WIDTHS_8B, 4096, 1, 1 << 30),
        (tiny::WIDTHS_8B, 4096, 3, 512 << 20),
        (tiny::WIDTHS_70B, 512, 8, 64 << 20),
    ] {
        let folder = tiny::sparse(&widths, 2);
        let mut most = 0;
        let mut told = WorkspaceNeed::default();
        for rank in 0..tensor {
            let backend =
                CpuBackend::new(folder.path(), options(tensor, rank, 1, Kernel::detect().level())).unwrap();
            let config = backend.checkpoint.config();
            let split = llamero_checkpoint::ShardPlan::of(config, backend.members()).unwrap();
            told = WorkspaceNeed::of(config, &backend.model, &split).unwrap();
            let limits = FormLimits {
                max_batched_tokens: tokens,
                steps_in_flight: 2,
                ..limits(64)
            };
            let spec = FormSpec {
                limits,
                ..spec(llamero_engine::Era::default(), 64)
            };
            let fixed = backend.memory(&spec).unwrap().fixed();
            let tensors = llamero_checkpoint::piece::rank_bytes(&backend.model, &backend.shard);
            most = most.max(fixed - tensors);
        }
        let told = told.bytes(tokens);
        assert!(
            told >= most && told - most < most / 20,
            "{tensor} ranks: told {told}, taken {most}"
        );
        assert!(most > at_least, "{tensor} ranks take {most}");
    }
}
