use std::fs;
use std::path::Path;
use std::sync::Mutex;

use half::bf16;
use llamero_checkpoint::dtype::extend_f32;
use llamero_checkpoint::{ShardPlan, Topology};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;
use crate::kernel::pack::pack_row;

const HIDDEN: usize = 96;
const VOCAB: usize = 700;

struct Notes(Mutex<Vec<llamero_engine::LoadProgress>>);

impl LoadWatch for Notes {
    fn progress(&self, progress: llamero_engine::LoadProgress) {
        self.0.lock().unwrap().push(progress);
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// A Llama of one layer with random weights; `edit` may change the bytes of any tensor.
fn checkpoint(tied: bool, edit: impl Fn(&str, &mut Vec<u8>)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "intermediate_size": 256,
        "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "max_position_embeddings": 4096
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let (mut header, mut data, mut seed) = (Map::new(), Vec::<u8>::new(), 1u32);
    let mut put = |name: &str, dtype: &str, shape: &[usize]| {
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32
        };
        let count: usize = shape.iter().product();
        let mut bytes: Vec<u8> = match dtype {
            "BF16" => (0..count)
                .flat_map(|_| bf16::from_f32(random()).to_le_bytes())
                .collect(),
            "F32" => (0..count).flat_map(|_| random().to_le_bytes()).collect(),
            _ => (0..count).map(|_| (random() * 127.0) as u8).collect(),
        };
        edit(name, &mut bytes);
        let start = data.len();
        data.extend(bytes);
        header.insert(
            name.to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    };
    put("model.embed_tokens.weight", "BF16", &[VOCAB, HIDDEN]);
    if !tied {
        put("lm_head.weight", "BF16", &[VOCAB, HIDDEN]);
    }
    put("model.norm.weight", "BF16", &[HIDDEN]);
    for (name, n, k) in [
        ("self_attn.q_proj", 192, HIDDEN),
        ("self_attn.k_proj", 96, HIDDEN),
        ("self_attn.v_proj", 96, HIDDEN),
        ("self_attn.o_proj", HIDDEN, 192),
        ("mlp.gate_proj", 256, HIDDEN),
        ("mlp.up_proj", 256, HIDDEN),
        ("mlp.down_proj", HIDDEN, 256),
    ] {
        put(&format!("model.layers.0.{name}.weight"), "F8_E4M3", &[n, k]);
        put(&format!("model.layers.0.{name}.weight_scale"), "F32", &[n, 1]);
    }
    put("model.layers.0.input_layernorm.weight", "BF16", &[HIDDEN]);
    put(
        "model.layers.0.post_attention_layernorm.weight",
        "BF16",
        &[HIDDEN],
    );
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

struct Rank {
    checkpoint: Checkpoint,
    model: ModelLayout,
    plan: ShardPlan,
}

impl Rank {
    fn open(folder: &Path, tensor: u32) -> Self {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let model = ModelLayout::check(&checkpoint).unwrap();
        let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(tensor)).unwrap();
        Self {
            checkpoint,
            model,
            plan,
        }
    }

    fn load(&self, rank: u32, file: Option<&OwnedFd>, threads: usize) -> Result<Weights, BackendError> {
        let shard = self.plan.member(rank).unwrap();
        let shape = Shape::new(self.checkpoint.config(), &self.plan, shard);
        let mut weights = Weights::map(layout(&shape, &self.model), 7, file).unwrap();
        let watch = Notes(Mutex::default());
        load(
            &self.checkpoint,
            &self.model,
            shard,
            &mut weights,
            file,
            threads,
            &watch,
        )?;
        let last = *watch.0.into_inner().unwrap().last().unwrap();
        let total = llamero_checkpoint::piece::rank_bytes(&self.model, shard);
        assert_eq!((last.loaded, last.total), (total, total));
        Ok(weights)
    }

    /// The elements of a tensor as they are stored.
    fn stored(&self, name: &str) -> Vec<u8> {
        let mut bytes = vec![0; self.checkpoint.tensor(name).unwrap().bytes() as usize];
        self.checkpoint.read_at(name, 0, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn threads_and_memory_files_change_no_byte() {
    let folder = checkpoint(false, |_, _| {});
    let rank = Rank::open(folder.path(), 2);
    let one = rank.load(1, None, 1).unwrap();
    let file = memfd_create("weights", MemfdFlags::CLOEXEC).unwrap();
    for (file, threads) in [(None, 3), (Some(&file), 1), (Some(&file), 3)] {
        let other = rank.load(1, file, threads).unwrap();
        assert!(
            other.bytes() == one.bytes(),
            "{threads} threads, a file: {}",
            file.is_some()
        );
    }
    // Some of it against the layout in its plainest form: the second half of the columns of `down`.
    let stored = rank.stored("model.layers.0.mlp.down_proj.weight");
    let at = one.layout().layers[0].matrix(Role::Down);
    assert_eq!((at.n, at.k), (HIDDEN, 128));
    let mut wanted = vec![0; Element::E4m3.packed_bytes(at.n, at.k)];
    for (row, bytes) in stored.chunks_exact(256).enumerate() {
        pack_row(Element::E4m3, &mut wanted, at.k, row, 0, &bytes[128..]);
    }
    assert!(one.matrix(at).weights == wanted);
    let mut scales = Vec::new();
    extend_f32(
        Dtype::F32,
        &rank.stored("model.layers.0.mlp.down_proj.weight_scale"),
        &mut scales,
    );
    assert_eq!(one.matrix(at).scale, scales);
}

#[test]
fn every_token_is_embedded_by_one_rank_and_a_tied_table_is_held_once() {
    for tied in [false, true] {
        let folder = checkpoint(tied, |_, _| {});
        let ranks = Rank::open(folder.path(), 2);
        let table = ranks.stored("model.embed_tokens.weight");
        let mut token = 0;
        let mut bytes = 0;
        for rank in 0..2 {
            let weights = ranks.load(rank, None, 1).unwrap();
            bytes += weights.bytes().len();
            for row in 0..ranks.plan.member(rank).unwrap().vocab().len() as usize {
                let mut found = [0; HIDDEN];
                weights.embed(row, &mut found);
                assert_eq!(
                    found.map(u16::to_le_bytes).as_flattened(),
                    &table[2 * token * HIDDEN..][..2 * HIDDEN],
                    "token {token}, tied: {tied}"
                );
                token += 1;
            }
        }
        assert_eq!(token, VOCAB);
        let tables = if tied { 1 } else { 2 };
        assert!(
            bytes < (tables * VOCAB * HIDDEN + 8 * 256 * HIDDEN) * 2,
            "{bytes} bytes, tied: {tied}"
        );
    }
}

#[test]
fn what_is_not_a_number_is_refused() {
    for name in [
        "model.layers.0.mlp.up_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
    ] {
        let folder = checkpoint(false, |tensor, bytes| {
            if tensor == name {
                let end = bytes.len();
                bytes[end - 1] = 0x7f;
                bytes[end - 2] = 0xc1;
            }
        });
        let error = Rank::open(folder.path(), 1)
            .load(0, None, 2)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(name) && error.contains("not numbers"), "{error}");
    }
}

/// A watch that cancels after so much progress was told.
struct Stop(std::sync::atomic::AtomicI64);

impl LoadWatch for Stop {
    fn progress(&self, _: llamero_engine::LoadProgress) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed) <= 0
    }
}

/// What the supervisor of three ranks keeps.
struct Supervisor {
    weights: Vec<OwnedFd>,
    notes: OwnedFd,
}

impl Supervisor {
    fn new() -> Self {
        let file = || memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        Self {
            weights: (0..3).map(|_| file()).collect(),
            notes: file(),
        }
    }

    /// Load as a freshly started process of the rank would.
    fn load(&self, folder: &Path, rank: u32, watch: &dyn LoadWatch) -> Result<(), BackendError> {
        use llamero_engine::Backend as _;
        let clone = |file: &OwnedFd| file.try_clone().unwrap();
        let options = crate::CpuOptions {
            members: Topology::tensor(3).into(),
            rank,
            memory: Some(clone(&self.weights[rank as usize])),
            pod: Some(crate::PodMemory {
                first: 0,
                weights: self.weights.iter().map(clone).collect(),
                notes: clone(&self.notes),
            }),
            // With one thread all chunks are told of.
            ..crate::CpuOptions::alone(1, crate::Kernel::detect())
        };
        crate::CpuBackend::new(folder, options)?.load(watch)
    }

    fn bytes(&self, rank: u32) -> Vec<u8> {
        let file = &self.weights[rank as usize];
        let mut bytes = vec![0; rustix::fs::fstat(file).unwrap().st_size as usize];
        assert_eq!(rustix::io::pread(file, &mut bytes, 0).unwrap(), bytes.len());
        bytes
    }
}

#[test]
fn ranks_of_a_pod_load_the_same_bytes_together_as_alone() {
    use llamero_engine::Unwatched;
    let folder = checkpoint(false, |_, _| {});
    let path = folder.path();
    let alone: Vec<Vec<u8>> = (0..3)
        .map(|rank| {
            let supervisor = Supervisor::new();
            // A rank without peers: nobody else takes part, and nothing waits for long.
            let memory = supervisor.weights[rank as usize].try_clone().unwrap();
            let options = crate::CpuOptions {
                members: Topology::tensor(3).into(),
                rank,
                memory: Some(memory),
                ..crate::CpuOptions::alone(1, crate::Kernel::detect())
            };
            llamero_engine::Backend::load(&mut crate::CpuBackend::new(path, options).unwrap(), &Unwatched)
                .unwrap();
            supervisor.bytes(rank)
        })
        .collect();
    for stop_after in [None, Some(1), Some(3), Some(8)] {
        let supervisor = Supervisor::new();
        std::thread::scope(|scope| {
            for rank in [0, 2] {
                let supervisor = &supervisor;
                scope.spawn(move || supervisor.load(path, rank, &Unwatched).unwrap());
            }
            if let Some(stop_after) = stop_after {
                let stop = Stop(stop_after.into());
                let stopped = supervisor.load(path, 1, &stop).unwrap_err();
                assert!(matches!(stopped, BackendError::Cancelled), "{stopped}");
            }
            supervisor.load(path, 1, &Unwatched).unwrap();
        });
        for rank in 0..3 {
            assert!(
                supervisor.bytes(rank) == alone[rank as usize],
                "rank {rank}, stopped after {stop_after:?}"
            );
        }
    }
}

#[test]
fn memory_of_another_checkpoint_is_filled_anew_whatever_the_notes_say() {
    use llamero_engine::Unwatched;
    let old = checkpoint(false, |_, _| {});
    let new = checkpoint(false, |_, bytes| bytes.iter_mut().for_each(|byte| *byte &= !1));
    let supervisor = Supervisor::new();
    let load_all = |path: &Path| {
        std::thread::scope(|scope| {
            for rank in 0..3 {
                let supervisor = &supervisor;
                scope.spawn(move || supervisor.load(path, rank, &Unwatched).unwrap());
            }
        });
    };
    load_all(old.path());
    let before: Vec<_> = (0..3).map(|rank| supervisor.bytes(rank)).collect();
    load_all(new.path());
    assert!(supervisor.bytes(1) != before[1]);
    // Back to the old one, in two attempts: the notes are still those of the first time.
    let stop = Stop(2.into());
    assert!(supervisor.load(old.path(), 1, &stop).is_err());
    load_all(old.path());
    for rank in 0..3 {
        assert!(supervisor.bytes(rank) == before[rank as usize], "rank {rank}");
    }
}
