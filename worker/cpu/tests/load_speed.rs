//! How fast weights get from the page cache into a rank's memory, beside plain copies measured in the same run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use llamero_checkpoint::{LlamaConfig, TensorId, TensorKind};
use llamero_cpu::{CpuBackend, CpuOptions, Kernel};
use llamero_engine::{Backend, Unwatched};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, json};

const ROUNDS: usize = 5;
const THREADS: usize = 2;

/// Two layers of a 70B in FP8: 1.8 GB.
fn write_checkpoint(folder: &Path) -> usize {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 2,
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
    end as usize
}

/// What one run took.
#[derive(Clone, Copy)]
struct Cost {
    /// GB/s by the clock on the wall.
    speed: f64,
    /// Seconds of processor time, of all threads, per GB. Says the same whoever else uses the processors.
    cpu: f64,
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

fn cost(bytes: usize, run: impl FnOnce()) -> Cost {
    let (start, cpu) = (Instant::now(), cpu_time());
    run();
    let (wall, cpu) = (start.elapsed(), cpu_time() - cpu);
    let gigabytes = bytes as f64 / 1e9;
    Cost {
        speed: gigabytes / wall.as_secs_f64(),
        cpu: cpu.as_secs_f64() / gigabytes,
    }
}

/// Copy `from` into `into` by as many threads as load.
fn copy(from: &[u8], into: &mut [u8]) -> Cost {
    let share = from.len().div_ceil(THREADS);
    cost(from.len(), || {
        std::thread::scope(|scope| {
            for (from, into) in from.chunks(share).zip(into.chunks_mut(share)) {
                scope.spawn(|| into.copy_from_slice(from));
            }
        });
    })
}

/// A memory file as the weights lie in, empty.
fn memory_file() -> OwnedFd {
    memfd_create("weights", MemfdFlags::CLOEXEC).unwrap()
}

/// The same copy into a fresh mapping of a fresh memory file, which is where weights are loaded to; and once more, now
/// that its pages are there.
fn copies_into_memory_file(from: &[u8]) -> (Cost, Cost) {
    let file = memory_file();
    rustix::fs::ftruncate(&file, from.len() as u64).unwrap();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice, of a file that nobody else knows.
    let start = unsafe {
        mmap(
            std::ptr::null_mut(),
            from.len(),
            access,
            MapFlags::SHARED,
            &file,
            0,
        )
    }
    .unwrap();
    // SAFETY: the mapping is that long, and nothing else refers to it.
    let into = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), from.len()) };
    let costs = (copy(from, into), copy(from, into));
    // SAFETY: the only slice of it is not used any more.
    unsafe { munmap(start, from.len()) }.unwrap();
    costs
}

fn load(folder: &Path, bytes: usize, memory: Option<OwnedFd>) -> Cost {
    let options = CpuOptions {
        memory,
        ..CpuOptions::alone(THREADS, Kernel::detect())
    };
    let mut rank = CpuBackend::new(folder, options).unwrap();
    cost(bytes, || rank.load(&Unwatched).unwrap())
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "long: a measurement on a machine that does nothing else"]
fn loading_reaches_half_of_a_memcpy() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = write_checkpoint(folder.path());
    // The first one brings the file into the page cache.
    load(folder.path(), bytes, None);
    let from: Vec<u8> = vec![1; 1 << 30];
    let mut table: [(&str, Vec<Cost>); 5] = [
        ("load, page cache to a fresh memory file", Vec::new()),
        ("memcpy into a fresh mapping of a fresh memory file", Vec::new()),
        ("memcpy into the same mapping once more", Vec::new()),
        ("load, page cache to private memory", Vec::new()),
        ("memcpy into fresh private memory", Vec::new()),
    ];
    for _ in 0..ROUNDS {
        let loaded = load(folder.path(), bytes, Some(memory_file()));
        let (fresh, again) = copies_into_memory_file(&from);
        let private = load(folder.path(), bytes, None);
        let plain = copy(&from, &mut vec![0; from.len()]);
        for ((_, costs), cost) in table.iter_mut().zip([loaded, fresh, again, private, plain]) {
            costs.push(cost);
        }
    }
    println!("medians of {ROUNDS} runs with {THREADS} threads each, alternated:");
    for (name, costs) in &table {
        let (speed, cpu) = (median(costs, |cost| cost.speed), median(costs, |cost| cost.cpu));
        println!("{name:52} {speed:6.2} GB/s on the wall, {cpu:6.3} processor seconds per GB");
    }
    let [load, fresh, again, private, plain] = table;
    let speed = |costs: &[Cost]| median(costs, |cost| cost.speed);
    let by_wall = speed(&load.1) / speed(&fresh.1);
    let by_cpu = median(&fresh.1, |cost| cost.cpu) / median(&load.1, |cost| cost.cpu);
    println!(
        "loading into a memory file reaches {by_wall:.2} of the memcpy into a fresh one by the wall, {by_cpu:.2} by \
         processor time, and {:.2} of the memcpy into memory that is there already",
        speed(&load.1) / speed(&again.1)
    );
    assert!(
        by_wall >= 0.5 && by_cpu >= 0.5,
        "{by_wall:.2} and {by_cpu:.2} of a memcpy into a fresh memory file"
    );
    let by_wall = speed(&private.1) / speed(&plain.1);
    assert!(
        by_wall >= 0.5,
        "{by_wall:.2} of a memcpy into fresh private memory"
    );
}
