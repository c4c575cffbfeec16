//! What a step of decoding reads of the device's memory, as the emulator counts it: every weight once, and keys and values once for each kv head.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{TINY_SPEC, backend, checkpoint, prompt};
use llamero_gpu_check::drive::{self, Leader, Way, sequence};
use llamero_gpu_check::model::{Model, TINY};
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::log;
use serde_json::Value;

/// A launch: kernel and, of each buffer that it touched, size, bytes read and bytes written.
struct Launch {
    kernel: String,
    buffers: Vec<[u64; 3]>,
}

fn launches() -> Vec<Launch> {
    let parse = |line: String| {
        let value: Value = serde_json::from_str(&line).unwrap();
        let buffers = value["buffers"].as_array().unwrap().iter();
        Launch {
            kernel: value["kernel"].as_str().unwrap().to_owned(),
            buffers: buffers
                .map(|one| [1, 2, 3].map(|at| one[at].as_u64().unwrap()))
                .collect(),
        }
    };
    log().into_iter().map(parse).collect()
}

/// Bytes that a product reads of its weights: the largest buffer that it does not write.
fn weights(launch: &Launch) -> [u64; 3] {
    let read = launch.buffers.iter().filter(|[_, _, written]| *written == 0);
    *read.max_by_key(|[size, ..]| *size).unwrap()
}

/// Bytes that attention reads of each of its two largest buffers, the keys and the values.
fn keys_and_values(launch: &Launch) -> [u64; 2] {
    let mut buffers = launch.buffers.clone();
    buffers.sort_unstable_by_key(|[size, ..]| std::cmp::Reverse(*size));
    [0, 1].map(|at| buffers[at][1])
}

emulated! {
    fn a_step_reads_each_weight_once_and_keys_and_values_once() on ["log={folder}/log"], {
        // Groups as those of 8B, 70B and 405B. Rows of all matrices fill whole tiles, so that none is read for nothing.
        for group in [4, 8, 16] {
            let (kv_heads, dim) = (1, 64);
            let model = Model { hidden: 512, head_dim: dim, q_heads: group, kv_heads, ffn: 1024, layers: 1, vocab: 1024, ..TINY };
            let folder = checkpoint(&model);
            let mut gpu = backend(folder.path());
            let blocks = drive::form(&mut gpu, &TINY_SPEC).unwrap();
            let mut leader = Leader::new(&TINY_SPEC, blocks);
            let before = launches().len();
            sequence(&mut gpu, &mut leader, &prompt(20), Way { chunk: 1, peers: 0 }).unwrap();
            let all = launches().split_off(before);
            let steps: Vec<&[Launch]> = all.split(|launch| launch.kernel == "embed").skip(1).collect();
            assert_eq!(steps.len(), 20);
            for (step, seen) in steps.iter().zip(1..) {
                // The full row is fetched behind the step.
                let end = step.iter().position(|launch| launch.kernel == "top_of_row").unwrap();
                let mut read = 0;
                for product in step[..end].iter().filter(|launch| launch.kernel.starts_with("product_")) {
                    let [size, once, _] = weights(product);
                    assert_eq!(size, once, "{}", product.kernel);
                    read += once;
                }
                let told = gpu.bytes_per_step();
                assert!(read <= told && read > told - told / 10, "{read} {told}");
                let attention = step.iter().find(|launch| launch.kernel == "attention_64").unwrap();
                assert_eq!(keys_and_values(attention), [seen * (kv_heads * dim * 2) as u64; 2], "groups of {group}");
            }
        }
    }
}
