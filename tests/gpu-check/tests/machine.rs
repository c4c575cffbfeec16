//! What depends on the machine: refusals, memory, and the check itself. Runs on emulated machines only.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{TINY_LIMITS, TINY_SPEC, backend, checkpoint, options};
use llamero_checkpoint::Topology;
use llamero_cuda::{CudaBackend, CudaOptions, Gpu};
use llamero_engine::{Backend, BackendError, FormLimits, FormSpec, KvDtype};
use llamero_gpu_check::drive;
use llamero_gpu_check::model::{Fp8, LLAMA_70B, LLAMA_405B, Model, TINY};
use llamero_gpu_check::stages::Check;
use llamero_gpu_emulator::emulated;

fn refused(model: &Model, options: CudaOptions) -> BackendError {
    match CudaBackend::new(checkpoint(model).path(), options) {
        Ok(_) => panic!("{model:?} is taken"),
        Err(error) => error,
    }
}

fn refusal(model: &Model, options: CudaOptions) -> String {
    refused(model, options).to_string()
}

emulated! {
    fn what_is_not_built_is_refused_by_name() on ["devices=2"], {
        let folder = checkpoint(&TINY);
        let gpu = backend(folder.path());
        let memory = |limits| gpu.memory(&FormSpec { limits, ..TINY_SPEC }).unwrap_err().to_string();
        assert!(memory(FormLimits { kv_dtype: KvDtype::Fp8E4m3, ..TINY_LIMITS }).contains("choose bf16"));
        assert!(memory(FormLimits { max_adapters: 1, ..TINY_LIMITS }).contains("1 adapters"));
        assert!(memory(FormLimits { block_size: 24, ..TINY_LIMITS }).contains("16, 32, 64, 128 or 256"));
        let split = |tensor, pipeline| CudaOptions { members: Topology { tensor, pipeline }.into(), ..options() };
        assert!(refusal(&Model { q_heads: 64, kv_heads: 4, ..TINY }, split(3, 1)).contains("a number of ranks that divides 32"));
        assert!(refusal(&Model { q_heads: 17 * 16, kv_heads: 17, ffn: 17 * 64, vocab: 17 * 128, ..TINY }, split(17, 1)).contains("at most 16"));
        assert!(refusal(&TINY, split(1, 3)).contains("pipeline 3 is more than the 2 layers"));
        assert!(refusal(&TINY, CudaOptions { gpu: Gpu::Number(2), ..options() }).contains("sees 2"));
        let uuid = "GPU-00000000-0000-0000-0000-000000000000".parse().unwrap();
        assert!(refusal(&TINY, CudaOptions { gpu: Gpu::Uuid(uuid), ..options() }).contains("is it given to the pod"));
        assert!(refusal(&Model { head_dim: 32, ..TINY }, options()).contains("heads of 32"));
        assert!(refusal(&Model { ffn: 33 * 64, ..TINY }, options()).contains("at most 32 leaves"));
        assert!(refusal(&Model { q_heads: 17, kv_heads: 1, ..TINY }, options()).contains("at most 16"));
        assert!(refusal(&Model { hidden: 264, ..TINY }, options()).contains("hidden width of 264"));
        let second = CudaBackend::new(folder.path(), CudaOptions { gpu: Gpu::Number(1), ..options() }).unwrap();
        assert_eq!(second.device().context.ordinal(), 1);
        assert!(gpu.numerics_class(KvDtype::Bf16, 0).starts_with("cuda-sm90 "));
    }

    fn a_gpu_is_looked_at_before_it_is_used() on ["memory=2GiB"], {
        let seen = backend(checkpoint(&TINY).path()).preflight().clone();
        assert_eq!((seen.memory, seen.uncorrected, seen.clock), (2 << 30, Some(0), Some((1980, 1980))));
        let text = seen.to_string();
        assert!(text.contains("2.0 of 2.0 GiB free, CUDA 13.5, driver 999.0.0-emulated, 1980 of 1980 MHz"), "{text}");
    }

    fn memory_that_is_far_too_slow_is_refused_before_anything_is_read() on ["bandwidth=32GiB"], {
        let error = refused(&TINY, options());
        assert!(matches!(&error, BackendError::Unavailable(why) if why.contains("of what it should")), "{error}");
    }

    fn a_driver_that_is_too_old_is_told_before_anything_is_read() on ["cuda=12.4"], {
        let error = refused(&TINY, options());
        assert!(matches!(&error, BackendError::Unusable(why) if why.contains("CUDA 12.4") && why.contains("driver 580")), "{error}");
    }

    fn errors_that_the_driver_reports_are_heard() on ["fault=xid-79@{folder}/fallen"], {
        let gpu = backend(checkpoint(&TINY).path());
        let board = gpu.device_board();
        let seen = board.get().unwrap();
        assert!(seen.read_bandwidth.is_some() && seen.nominal_bandwidth.is_some(), "{seen:?}");
        assert_eq!((seen.faults, seen.last_fault, seen.warning.as_str()), (0, None, ""));
        let machine = std::env::var("LLAMERO_GPU_EMULATOR").unwrap();
        std::fs::write(machine.split_once('@').unwrap().1, "").unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while board.get().unwrap().faults == 0 {
            assert!(Instant::now() < until, "nothing was heard");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let seen = board.get().unwrap();
        assert_eq!(seen.last_fault, Some(79));
        assert!(seen.warning.contains("fallen off the bus"), "{seen:?}");
    }

    // A file that is there from the beginning.
    fn a_gpu_with_damaged_memory_is_refused_before_anything_is_read() on ["fault=ecc@/proc/self/exe"], {
        let error = refused(&TINY, options());
        assert!(matches!(&error, BackendError::Unavailable(why) if why.contains("no others to replace them. Drain the node")), "{error}");
    }

    fn calls_in_the_wrong_order_are_bugs() on ["order=forward"], {
        let folder = checkpoint(&TINY);
        let mut gpu = backend(folder.path());
        let mesh = || Box::new(llamero_engine::mesh::TcpMesh::alone(drive::ERA));
        let error = gpu.form(&TINY_SPEC, mesh(), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("loaded first"), "{error}");
        assert!(gpu.save(0).unwrap_err().to_string().contains("formed first"));
    }

    fn weights_that_do_not_fit_are_told_before_they_are_read() on ["memory=2MiB"], {
        let folder = checkpoint(&TINY);
        let error = backend(folder.path()).load(&llamero_engine::Unwatched).unwrap_err().to_string();
        assert!(error.contains("the weights need") && error.contains("2097152"), "{error}");
    }

    fn a_context_that_does_not_fit_is_told_with_one_that_does() on ["memory=32MiB"], {
        let folder = checkpoint(&TINY);
        let mut gpu = backend(folder.path());
        let long = FormSpec { limits: FormLimits { max_context: 30_000, ..TINY_LIMITS }, ..TINY_SPEC };
        let error = gpu.usual_kv_bytes(&long).unwrap_err().to_string();
        assert!(error.contains("lower maxContextLength to at most"), "{error}");
        let error = drive::form(&mut gpu, &long).unwrap_err().to_string();
        assert!(error.contains("one sequence of 30000 tokens"), "{error}");
        // More is asked for than is there: as much as fits is taken.
        let greedy = FormSpec { kv_bytes: 1 << 40, ..TINY_SPEC };
        let blocks = drive::form(&mut gpu, &greedy).unwrap();
        assert!((25..4096).contains(&blocks), "{blocks}");
    }

    fn forming_takes_what_the_plan_says() on ["memory=256MiB"], {
        let folder = checkpoint(&TINY);
        let mut gpu = backend(folder.path());
        let plan = gpu.memory(&TINY_SPEC).unwrap();
        let context = gpu.device().context.clone();
        let free = || context.mem_get_info().unwrap().0 as u64;
        let before = free();
        let usual = gpu.usual_kv_bytes(&TINY_SPEC).unwrap();
        assert!(usual < before && usual > before / 2);
        let blocks = drive::form(&mut gpu, &TINY_SPEC).unwrap();
        let taken = before - free();
        let planned = plan.fixed() + u64::from(blocks + 1) * plan.kv_block;
        // The programs of sums are not told of, and padding to whole pages is.
        assert!(taken <= planned + 4096 && taken > planned - planned / 10, "{taken} {planned}");
        gpu.unload();
        context.synchronize().unwrap();
        assert!(before - free() < planned / 10, "weights and buffers are given back");
    }

    fn llama_70b_and_405b_fit_the_gpus_of_one_node_and_of_two() on ["devices=8,memory=80GiB"], {
        // As in the samples: at least two sequences of the longest context, beside a step of 512 tokens.
        let spec = |max_context| FormSpec {
            limits: FormLimits { max_context, max_batched_tokens: 512, max_sequences: 32, ..TINY_LIMITS },
            ..TINY_SPEC
        };
        let bf16 = Model { fp8: Fp8::None, ..LLAMA_405B };
        let stages = |tensor, pipeline| Topology { tensor, pipeline };
        for (model, topology, context) in [
            (LLAMA_70B, stages(4, 1), 65_536),
            (LLAMA_405B, stages(8, 1), 65_536),
            // Over two nodes with as many GPUs each; not quantised it does not fit one.
            (LLAMA_405B, stages(8, 2), 131_072),
            (bf16, stages(8, 2), 131_072),
        ] {
            let folder = tempfile::tempdir().unwrap();
            model.write_sparse(folder.path()).unwrap();
            let (tensor, last) = (topology.tensor, topology.ranks() - topology.tensor);
            for rank in [0, tensor - 1, last, last + tensor - 1] {
                let gpu = Gpu::Number((rank % tensor) as usize);
                let options = CudaOptions { members: topology.into(), rank, gpu, ..options() };
                let gpu = CudaBackend::new(folder.path(), options).unwrap();
                let plan = gpu.memory(&spec(context)).unwrap();
                let kv = gpu.usual_kv_bytes(&spec(context)).unwrap();
                let sequences = plan.blocks(kv) / context.div_ceil(16);
                assert!(sequences >= 2, "{topology}, rank {rank}: {plan:?}, {kv} bytes are left");
                // Areas, the largest of which takes parts of all ranks' roots, are a small part of the memory.
                assert!(plan.workspace < 1 << 30, "{plan:?}");
            }
        }
    }

    fn the_check_runs_on_a_small_machine() on ["memory=512MiB"], {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("kernels")).unwrap();
        let check = Check { folder: folder.path().to_owned(), small: true };
        for stage in ["device", "read", "products", "exchange", "decode-8b", "prefill-8b"] {
            check.run(stage).unwrap();
        }
        let results = std::fs::read_to_string(folder.path().join("results.jsonl")).unwrap();
        for stage in ["device", "read", "product", "exchange", "decode", "prefill"] {
            assert!(results.contains(&format!("\"stage\":\"{stage}\"")), "{stage}: {results}");
        }
        assert!(check.run("nonsense").unwrap_err().to_string().contains("prefill-8b"));
    }
}
