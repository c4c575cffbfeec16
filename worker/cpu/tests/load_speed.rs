//! How fast weights get from the page cache into a rank's memory, beside plain copies measured in the same run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use llamero_checkpoint::{LlamaConfig, TensorId, TensorKind};
use llamero_cpu::{CpuBackend, CpuOptions, Kernel};
use llamero_engine::{Backend, Unwatched};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Map, json};

const ROUNDS: usize = 5;

/// Four layers of a 70B in FP8: 3.4 GB.
fn write_checkpoint(folder: &Path) -> u64 {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 4,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 1280,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": false, "max_position_embeddings": 131_072
    });
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
    let config = LlamaConfig::from_json(json).unwrap();
    let (mut header, mut end) = (Map::new(), 0);
    for id in TensorId::all(&config) {
        let (rows, cols) = id.kind.shape(&config);
        let plain = id.kind.is_norm() || matches!(id.kind, TensorKind::Embed | TensorKind::Head);
        let mut put = |name: String, dtype: &str, shape: Vec<u64>, size: u64| {
            let start = end;
            end += shape.iter().product::<u64>() * size;
            header.insert(
                name,
                json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}),
            );
        };
        if plain {
            let shape = if id.kind.is_norm() {
                vec![cols]
            } else {
                vec![rows, cols]
            };
            put(id.name(), "BF16", shape, 2);
        } else {
            put(id.name(), "F8_E4M3", vec![rows, cols], 1);
            put(id.name() + "_scale", "F32", vec![rows, 1], 4);
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let block: Vec<u8> = (0..1 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 26) as u8)
        .collect();
    for start in (0..end).step_by(block.len()) {
        file.write_all(&block[..(end - start).min(1 << 20) as usize])
            .unwrap();
    }
    file.flush().unwrap();
    end
}

/// Copy `from` into `into` by two threads; GB/s.
fn copy(from: &[u8], into: &mut [u8]) -> f64 {
    let start = Instant::now();
    let half = from.len().div_ceil(2);
    std::thread::scope(|scope| {
        for (from, into) in from.chunks(half).zip(into.chunks_mut(half)) {
            scope.spawn(|| into.copy_from_slice(from));
        }
    });
    speed(from.len() as u64, start)
}

fn speed(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}

#[test]
#[ignore = "long: a measurement on a machine that does nothing else"]
fn loading_reaches_half_of_a_memcpy() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = write_checkpoint(folder.path());
    let load = |in_file: bool| {
        let memory = in_file.then(|| memfd_create("weights", MemfdFlags::CLOEXEC).unwrap());
        let options = CpuOptions {
            memory,
            ..CpuOptions::alone(2, Kernel::detect())
        };
        let mut rank = CpuBackend::new(folder.path(), options).unwrap();
        let start = Instant::now();
        rank.load(&Unwatched).unwrap();
        speed(bytes, start)
    };
    // The first one brings the file into the page cache.
    load(false);
    let from: Vec<u8> = vec![1; 1 << 30];
    let (mut best_ratio, mut best): (f64, f64) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        let fresh = copy(&from, &mut vec![0; 1 << 30]);
        let mut touched = vec![2; 1 << 30];
        let warm = copy(&from, &mut touched);
        drop(touched);
        let (file, memory) = (load(true), load(false));
        println!(
            "2 threads: load into a memory file {file:.2} GB/s, into memory {memory:.2} GB/s; memcpy into fresh memory \
             {fresh:.2} GB/s ({:.2} of it), into touched memory {warm:.2} GB/s ({:.2} of it)",
            file / fresh,
            file / warm
        );
        best_ratio = best_ratio.max(file / fresh);
        best = best.max(file.max(memory));
    }
    assert!(best_ratio >= 0.5, "{best_ratio} of a memcpy into fresh memory");
    println!("best {best:.2} GB/s");
}
