//! Small checkpoints for tests, and where the fixtures and the test model are.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

pub mod gguf;
pub mod published;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use llamero_checkpoint::layout::{TensorId, TensorKind};
use llamero_checkpoint::safetensors::SafetensorsFile;
use llamero_checkpoint::{Dtype, LlamaConfig};
use serde_json::{Map, Value, json};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

/// A file or folder of the test model.
pub fn model(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../.local/models")
        .join(name);
    assert!(path.exists(), "{} is not there: run `make model`", path.display());
    path
}

/// All bytes of a tensor.
pub fn bytes(file: &SafetensorsFile, name: &str) -> Vec<u8> {
    let info = file
        .tensor(name)
        .unwrap_or_else(|| panic!("{name} in {}", file.path().display()));
    let mut bytes = vec![0; info.bytes() as usize];
    file.read_at(name, 0, &mut bytes).unwrap();
    bytes
}

/// All values of a tensor of floats.
pub fn floats(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    let mut values = Vec::new();
    assert!(llamero_checkpoint::dtype::extend_f32(
        file.tensor(name).unwrap().dtype,
        &bytes(file, name),
        &mut values
    ));
    values
}

/// `config.json` of a Llama.
pub fn config_json(sizes: Sizes) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.q_heads, "num_key_value_heads": sizes.kv_heads,
        "intermediate_size": sizes.ffn, "vocab_size": sizes.vocab, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "max_position_embeddings": 131072,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    })
}

#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub hidden: u32,
    pub layers: u32,
    pub q_heads: u32,
    pub kv_heads: u32,
    pub ffn: u32,
    pub vocab: u32,
}

pub const TINY: Sizes = Sizes {
    hidden: 64,
    layers: 2,
    q_heads: 4,
    kv_heads: 2,
    ffn: 256,
    vocab: 300,
};
pub const LLAMA_8B: Sizes = Sizes {
    hidden: 4096,
    layers: 32,
    q_heads: 32,
    kv_heads: 8,
    ffn: 14336,
    vocab: 128_256,
};
pub const LLAMA_70B: Sizes = Sizes {
    hidden: 8192,
    layers: 80,
    q_heads: 64,
    kv_heads: 8,
    ffn: 28672,
    vocab: 128_256,
};
pub const LLAMA_405B: Sizes = Sizes {
    hidden: 16384,
    layers: 126,
    q_heads: 128,
    kv_heads: 8,
    ffn: 53248,
    vocab: 128_256,
};

/// Name, dtype and shape of every tensor; `fp8` says which matrices are FP8 with one f32 scale a row.
pub fn tensors(config: &LlamaConfig, fp8: impl Fn(TensorId) -> bool) -> Vec<(String, Dtype, Vec<u64>)> {
    let mut list = Vec::new();
    for id in TensorId::all(config).filter(|id| id.kind != TensorKind::Head || !config.tie_word_embeddings) {
        let (rows, cols) = id.kind.shape(config);
        let shape = if id.kind.is_norm() {
            vec![cols]
        } else {
            vec![rows, cols]
        };
        if id.kind.is_linear() && fp8(id) {
            list.push((id.name(), Dtype::F8E4M3, shape));
            list.push((id.name() + "_scale", Dtype::F32, vec![rows, 1]));
        } else {
            list.push((id.name(), Dtype::BF16, shape));
        }
    }
    list
}

/// The header of a file with these tensors, and the bytes of its data.
pub fn header(tensors: &[(String, Dtype, Vec<u64>)]) -> (Value, u64) {
    let mut entries = Map::new();
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += shape.iter().product::<u64>() * dtype.size();
        let entry = json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [start, end]});
        entries.insert(name.clone(), entry);
    }
    (Value::Object(entries), end)
}

/// Write a file of `data` bytes that takes no room on disk.
pub fn write_sparse(path: &Path, header: &Value, data: u64) {
    let json = header.to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(json.len() as u64).to_le_bytes()).unwrap();
    file.write_all(json.as_bytes()).unwrap();
    file.set_len(8 + json.len() as u64 + data).unwrap();
}

/// A checkpoint of that size in files of about `per_file` tensors, with an index; all values are zero.
pub fn write_checkpoint(
    folder: &Path,
    sizes: Sizes,
    per_file: usize,
    fp8: impl Fn(TensorId) -> bool,
) -> LlamaConfig {
    let json = config_json(sizes);
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
    let config = LlamaConfig::from_json(json).unwrap();
    let all = tensors(&config, fp8);
    let mut weight_map = Map::new();
    for (number, part) in all.chunks(per_file).enumerate() {
        let name = format!("model-{number}.safetensors");
        let (header, data) = header(part);
        write_sparse(&folder.join(&name), &header, data);
        weight_map.extend(part.iter().map(|(tensor, ..)| (tensor.clone(), json!(name))));
    }
    let index = json!({"metadata": {}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    config
}
