//! A checkpoint of a small random Llama, with the awkward shape of SmolLM2: nine query heads, three kv heads.

use std::fs;
use std::path::Path;

use half::bf16;
use llamero_checkpoint::e4m3;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

pub(super) const VOCAB: u32 = 1100;
const HIDDEN: usize = 96;
const HEAD_DIM: usize = 32;
const FFN: usize = 512;
const LAYERS: usize = 2;

/// Write it to a temporary folder: linear layers in FP8 with row scales, or everything in bf16.
pub(super) fn checkpoint(fp8: bool) -> TempDir {
    checkpoint_of(fp8, LAYERS, false)
}

/// The same with `layers` layers, and with one table for embedding and head if it is `tied`.
pub(super) fn checkpoint_of(fp8: bool, layers: usize, tied: bool) -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": layers,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": HEAD_DIM, "intermediate_size": FFN,
        "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "max_position_embeddings": 4096, "eos_token_id": 2, "bos_token_id": 1,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256, "rope_type": "llama3"}
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut file = Writer {
        seed: 1,
        fp8,
        header: Map::new(),
        data: Vec::new(),
    };
    let vocab = VOCAB as usize;
    file.plain("model.embed_tokens.weight", vec![vocab, HIDDEN], 1.0, 0.0);
    for layer in 0..layers {
        let prefix = format!("model.layers.{layer}");
        file.plain(
            &format!("{prefix}.input_layernorm.weight"),
            vec![HIDDEN],
            0.2,
            1.0,
        );
        file.plain(
            &format!("{prefix}.post_attention_layernorm.weight"),
            vec![HIDDEN],
            0.2,
            1.0,
        );
        for (name, n, k) in MODULES {
            file.linear(&format!("{prefix}.{name}"), n, k);
        }
    }
    file.plain("model.norm.weight", vec![HIDDEN], 0.2, 1.0);
    if !tied {
        file.linear("lm_head", vocab, HIDDEN);
    }
    file.write(&folder.path().join("model.safetensors"));
    folder
}

/// How an adapter differs from others.
pub(super) struct AdapterShape<'a> {
    pub(super) seed: u64,
    pub(super) rank: usize,
    /// The modules that it has.
    pub(super) modules: &'a [&'a str],
    pub(super) layers: usize,
}

/// Modules of a layer by name, with outputs and inputs.
const MODULES: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 9 * HEAD_DIM, HIDDEN),
    ("self_attn.k_proj", 3 * HEAD_DIM, HIDDEN),
    ("self_attn.v_proj", 3 * HEAD_DIM, HIDDEN),
    ("self_attn.o_proj", HIDDEN, 9 * HEAD_DIM),
    ("mlp.gate_proj", FFN, HIDDEN),
    ("mlp.up_proj", FFN, HIDDEN),
    ("mlp.down_proj", HIDDEN, FFN),
];

/// Names of all modules of a layer that can be adapted.
pub(super) const ALL_MODULES: [&str; 7] = {
    let [
        (q, ..),
        (k, ..),
        (v, ..),
        (o, ..),
        (gate, ..),
        (up, ..),
        (down, ..),
    ] = MODULES;
    [q, k, v, o, gate, up, down]
};

/// A random adapter with a scale of 2.
pub(super) fn adapter(shape: &AdapterShape<'_>) -> TempDir {
    let folder = TempDir::new().unwrap();
    let rank = shape.rank;
    let config =
        json!({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": shape.modules});
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let mut file = Writer {
        seed: shape.seed,
        fp8: false,
        header: Map::new(),
        data: Vec::new(),
    };
    for layer in 0..shape.layers {
        for (name, outputs, inputs) in MODULES {
            if shape.modules.contains(&name) {
                let module = format!("base_model.model.model.layers.{layer}.{name}");
                let spread = 1.0 / (inputs as f32).sqrt();
                file.plain(
                    &format!("{module}.lora_A.weight"),
                    vec![rank, inputs],
                    spread,
                    0.0,
                );
                file.plain(&format!("{module}.lora_B.weight"), vec![outputs, rank], 0.3, 0.0);
            }
        }
    }
    file.write(&folder.path().join("adapter_model.safetensors"));
    folder
}

/// The widths of a Llama 3.1, whose heads have 128 elements and which has 8 of keys and values.
pub(super) struct Widths {
    pub(super) hidden: usize,
    pub(super) ffn: usize,
}

/// Llama 3.1 8B.
pub(super) const WIDTHS_8B: Widths = Widths {
    hidden: 4096,
    ffn: 14_336,
};

/// Llama 3.1 70B.
pub(super) const WIDTHS_70B: Widths = Widths {
    hidden: 8192,
    ffn: 28_672,
};

/// A checkpoint with `layers` layers of a Llama 3.1 in FP8 and a small vocabulary, as a sparse file: every weight is zero and
/// takes no room.
pub(super) fn sparse(widths: &Widths, layers: usize) -> TempDir {
    let Widths { hidden, ffn } = *widths;
    let folder = TempDir::new().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": hidden / 128, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": ffn,
        "vocab_size": 1024, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": false,
        "max_position_embeddings": 131_072, "eos_token_id": 2, "bos_token_id": 1
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let (mut header, mut end) = (Map::new(), 0);
    let mut put = |name: String, dtype: &str, shape: &[usize], bytes: usize| {
        header.insert(
            name,
            json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]}),
        );
        end += bytes;
    };
    for name in ["model.embed_tokens", "lm_head"] {
        put(
            format!("{name}.weight"),
            "BF16",
            &[1024, hidden],
            2 * 1024 * hidden,
        );
    }
    put("model.norm.weight".into(), "BF16", &[hidden], 2 * hidden);
    for layer in 0..layers {
        let prefix = format!("model.layers.{layer}");
        for name in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("{prefix}.{name}.weight"), "BF16", &[hidden], 2 * hidden);
        }
        for (name, n, k) in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", 1024, hidden),
            ("self_attn.v_proj", 1024, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", ffn, hidden),
            ("mlp.up_proj", ffn, hidden),
            ("mlp.down_proj", hidden, ffn),
        ] {
            put(format!("{prefix}.{name}.weight"), "F8_E4M3", &[n, k], n * k);
            put(format!("{prefix}.{name}.weight_scale"), "F32", &[n, 1], 4 * n);
        }
    }
    let path = folder.path().join("model.safetensors");
    let writer = Writer {
        seed: 1,
        fp8: true,
        header,
        data: Vec::new(),
    };
    writer.write(&path);
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let start = file.metadata().unwrap().len();
    file.set_len(start + end as u64).unwrap();
    folder
}

struct Writer {
    seed: u64,
    fp8: bool,
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Writer {
    /// Uniform in -1 .. 1.
    fn random(&mut self) -> f32 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn put(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, self.data.len()]});
        self.header.insert(name.to_owned(), entry);
    }

    fn plain(&mut self, name: &str, shape: Vec<usize>, spread: f32, middle: f32) {
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..count)
            .flat_map(|_| bf16::from_f32(self.random() * spread + middle).to_le_bytes())
            .collect();
        self.put(name, "BF16", &shape, &bytes);
    }

    fn linear(&mut self, name: &str, n: usize, k: usize) {
        let spread = 2.0 / (k as f32).sqrt();
        if !self.fp8 {
            return self.plain(&format!("{name}.weight"), vec![n, k], spread, 0.0);
        }
        let codes: Vec<u8> = (0..n * k).map(|_| e4m3::encode(self.random() * 400.0)).collect();
        self.put(&format!("{name}.weight"), "F8_E4M3", &[n, k], &codes);
        let scales: Vec<u8> = (0..n)
            .flat_map(|_| ((1.0 + 0.3 * self.random()) * spread / 400.0).to_le_bytes())
            .collect();
        self.put(&format!("{name}.weight_scale"), "F32", &[n, 1], &scales);
    }

    fn write(self, path: &Path) {
        let mut header = Value::Object(self.header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(&header);
        file.extend_from_slice(&self.data);
        fs::write(path, file).unwrap();
    }
}
