//! Files of checkpoints.

use std::fs;
use std::io;
use std::path::Path;

use llamero_checkpoint::adapter::{CONFIG_NAME, LoraConfig, WEIGHTS_NAME, tensors};
use llamero_checkpoint::config::Quantization;
use llamero_checkpoint::gguf::GgufFile;
use llamero_checkpoint::presharded::ShardManifest;
use llamero_checkpoint::remote::WeightFile;
use llamero_checkpoint::safetensors::{Header, SafetensorsFile, WeightIndex};
use llamero_checkpoint::{Adapter, GenerationConfig, LlamaConfig};
use llamero_fuzz::{Shape, Target, drive};
use serde_json::json;

use crate::outcome;

#[derive(Debug)]
struct InMemory(Vec<u8>);

impl WeightFile for InMemory {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let part = from.and_then(|from| self.0.get(from..from.checked_add(buffer.len())?));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[test]
fn safetensors_headers() {
    let target = Target {
        name: "safetensors-header",
        shape: Shape::Json,
        factor: 200,
        constant: 64 << 10,
        threads: false,
    };
    drive(target, || {
        (Vec::new(), move |input: &[u8]| {
            let header = Header::parse(input);
            if let Ok(header) = &header {
                let sizes = header
                    .tensors
                    .values()
                    .map(|info| u128::from(info.elements()) + u128::from(info.bytes()));
                assert!(sizes.sum::<u128>() < u128::MAX && header.data_bytes() < u64::MAX);
            }
            outcome(header)
        })
    });
}

#[test]
fn safetensors_files() {
    let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}}"#;
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend_from_slice(header);
    whole.extend_from_slice(&[7; 9]);
    let target = Target {
        name: "safetensors-file",
        shape: Shape::Bytes,
        factor: 200,
        constant: 64 << 10,
        threads: false,
    };
    let path = Path::new("model.safetensors");
    drive(target, || {
        (vec![whole], move |input: &[u8]| {
            let file = SafetensorsFile::over(path, Box::new(InMemory(input.to_vec())));
            if let Ok(file) = &file {
                for (name, info) in &file.header().tensors {
                    let mut bytes = vec![0; usize::try_from(info.bytes()).unwrap()];
                    file.read_at(name, 0, &mut bytes).unwrap();
                    file.read_at(name, 1, &mut bytes).unwrap_or_default();
                }
            }
            outcome(file)
        })
    });
}

#[test]
fn index_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    let target = Target {
        name: "weight-index",
        shape: Shape::Json,
        factor: 200,
        constant: 64 << 10,
        threads: false,
    };
    drive(target, || {
        (Vec::new(), move |input: &[u8]| {
            fs::write(&path, input).unwrap();
            outcome(WeightIndex::read(&path).map(|index| index.files().len()))
        })
    });
}

#[test]
fn configurations() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target {
        name: "config",
        shape: Shape::Json,
        factor: 400,
        constant: 1 << 20,
        threads: false,
    };
    drive(target, || {
        (Vec::new(), move |input: &[u8]| {
            let path = folder.path().join("config.json");
            fs::write(&path, input).unwrap();
            let config = LlamaConfig::read(&path);
            if let Ok(config) = &config {
                let _ = config.kv_bytes_per_head();
            }
            let value = serde_json::from_slice(input).unwrap_or_default();
            let scheme = outcome(Quantization::from_config(&value));
            let sidecar = outcome(Quantization::from_sidecar(&value));
            let generation = outcome(GenerationConfig::read(&path));
            format!("{} {scheme} {sidecar} {generation}", outcome(config))
        })
    });
}

#[test]
fn manifests_of_presharded_folders() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target {
        name: "manifest",
        shape: Shape::Json,
        factor: 200,
        constant: 64 << 10,
        threads: false,
    };
    let digest = "0f".repeat(32);
    let file = |name: &str| json!({"name": name, "bytes": 9, "table": digest});
    let seed = json!({
        "formatVersion": 1, "blockBytes": 1 << 20, "topology": {"tensor": 2, "pipeline": 1}, "source": digest,
        "files": [file("rank-0"), file("rank-1")], "samples": [digest],
        "tensors": {"model.norm.weight": {"dtype": "BF16", "shape": [4]}}
    });
    drive(target, || {
        (vec![seed.to_string().into_bytes()], move |input: &[u8]| {
            fs::write(folder.path().join("llamero-shards.json"), input).unwrap();
            outcome(ShardManifest::read(folder.path()))
        })
    });
}

/// A model with two layers, hidden 4, and two heads of 2.
fn small_model() -> LlamaConfig {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 8, "vocab_size": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64
    });
    LlamaConfig::from_json(config).unwrap()
}

/// `adapter_config.json` of PEFT, and what it says of two modules.
#[test]
fn configurations_of_adapters() {
    let target = Target {
        name: "adapter-config",
        shape: Shape::Json,
        factor: 400,
        constant: 64 << 10,
        threads: false,
    };
    drive(target, || {
        (Vec::new(), move |input: &[u8]| {
            let config = LoraConfig::parse(input);
            let mut words = outcome(config.as_ref().map(|_| ()));
            for module in ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"] {
                if let Ok(config) = &config {
                    if let (Ok(rank), Ok(scale)) = (config.rank(module), config.scale(module)) {
                        assert!(rank > 0 && scale.is_finite());
                    }
                    words += &outcome(config.rank(module));
                    words += &outcome(config.scale(module));
                }
            }
            words
        })
    });
}

/// The tensors of an adapter in a header.
#[test]
fn headers_of_adapters() {
    let target = Target {
        name: "adapter-header",
        shape: Shape::Json,
        factor: 400,
        constant: 64 << 10,
        threads: false,
    };
    let model = small_model();
    let config = LoraConfig::parse(br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#).unwrap();
    drive(target, || {
        (Vec::new(), move |input: &[u8]| {
            let Ok(header) = Header::parse(input) else {
                return "no header".to_owned();
            };
            let checked = tensors::check(&config, &header, &model, 8);
            if let Ok(modules) = &checked {
                for (_, factors) in modules {
                    assert!(
                        header.tensors.contains_key(&factors.a) && header.tensors.contains_key(&factors.b)
                    );
                }
            }
            outcome(checked)
        })
    });
}

/// Both files of an adapter, the configuration up to the first zero byte and the weights behind it.
#[test]
fn folders_of_adapters() {
    let header = br#"{"base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight":{"dtype":"BF16","shape":[1,4],"data_offsets":[0,8]},"base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}}"#;
    let mut whole = br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2}"#.to_vec();
    whole.push(0);
    whole.extend((header.len() as u64).to_le_bytes());
    whole.extend_from_slice(header);
    whole.extend_from_slice(&[0x3f; 12]);
    let target = Target {
        name: "adapter-folder",
        shape: Shape::Bytes,
        factor: 400,
        // What is hashed at a time.
        constant: 2 << 20,
        threads: false,
    };
    let (folder, model) = (tempfile::tempdir().unwrap(), small_model());
    drive(target, || {
        (vec![whole], move |input: &[u8]| {
            let at = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
            let (config, weights) = input.split_at(at);
            fs::write(folder.path().join(CONFIG_NAME), config).unwrap();
            fs::write(
                folder.path().join(WEIGHTS_NAME),
                weights.get(1..).unwrap_or_default(),
            )
            .unwrap();
            let adapter = Adapter::open(folder.path(), &model, 8);
            let mut words = outcome(adapter.as_ref().map(|_| ()));
            for (_, factors) in adapter.iter().flat_map(Adapter::modules) {
                words += &outcome(adapter.as_ref().unwrap().bf16(&factors.a));
                words += &outcome(adapter.as_ref().unwrap().bf16(&factors.b));
            }
            words
        })
    });
}

/// A small GGUF file: two values, one text, an array, and a tensor of 32 floats.
fn small_gguf() -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    let text = |file: &mut Vec<u8>, text: &str| {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
    };
    file.extend(3_u32.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.extend(3_u64.to_le_bytes());
    text(&mut file, "general.alignment");
    file.extend(4_u32.to_le_bytes());
    file.extend(32_u32.to_le_bytes());
    text(&mut file, "general.architecture");
    file.extend(8_u32.to_le_bytes());
    text(&mut file, "llama");
    text(&mut file, "tokenizer.ggml.tokens");
    file.extend(9_u32.to_le_bytes());
    file.extend(8_u32.to_le_bytes());
    file.extend(2_u64.to_le_bytes());
    text(&mut file, "a");
    text(&mut file, "b");
    text(&mut file, "token_embd.weight");
    file.extend(2_u32.to_le_bytes());
    file.extend(16_u64.to_le_bytes());
    file.extend(2_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend([1; 128]);
    file
}

#[test]
fn gguf_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let target = Target {
        name: "gguf",
        shape: Shape::Bytes,
        factor: 300,
        constant: 128 << 10,
        threads: false,
    };
    drive(target, || {
        (vec![small_gguf()], move |input: &[u8]| {
            fs::write(&path, input).unwrap();
            let file = GgufFile::open(&path);
            if let Ok(file) = &file {
                for tensor in file.tensors().values() {
                    let mut values = Vec::new();
                    file.read_f32(tensor, 0, tensor.rows, &mut values).unwrap();
                }
            }
            outcome(file)
        })
    });
}
