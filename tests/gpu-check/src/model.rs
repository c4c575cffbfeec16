//! Models with random weights, the same for the same seed.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use half::bf16;
use llamero_checkpoint::e4m3;
use serde_json::{Map, Value, json};

/// Sizes of a Llama.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Token ids.
    pub vocab: usize,
    /// Which matrices are in FP8 with row scales.
    pub fp8: Fp8,
}

/// Which matrices are in FP8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fp8 {
    /// None.
    None,
    /// All but the head, as the usual conversions do.
    AllLinear,
    /// The feed-forward layers but of the first and the last layer, as in Meta's own 405B.
    Meta,
}

/// Llama 3's shape in little: 8 kv heads, scaled rotary angles, a head of its own.
pub const TINY: Model = Model {
    hidden: 256,
    layers: 2,
    q_heads: 16,
    kv_heads: 8,
    head_dim: 64,
    ffn: 512,
    vocab: 1100,
    fp8: Fp8::AllLinear,
};

/// Llama 3.1 8B.
pub const LLAMA_8B: Model = Model {
    hidden: 4096,
    layers: 32,
    q_heads: 32,
    kv_heads: 8,
    head_dim: 128,
    ffn: 14_336,
    vocab: 128_256,
    fp8: Fp8::AllLinear,
};

/// Llama 3.1 70B.
pub const LLAMA_70B: Model = Model {
    hidden: 8192,
    layers: 80,
    q_heads: 64,
    ffn: 28_672,
    ..LLAMA_8B
};

/// Llama 3.1 405B, all linear layers in FP8.
pub const LLAMA_405B: Model = Model {
    hidden: 16_384,
    layers: 126,
    q_heads: 128,
    ffn: 53_248,
    ..LLAMA_8B
};

/// A tensor of the file.
struct Tensor {
    name: String,
    rows: usize,
    /// 0 for a vector.
    cols: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Norm,
    Table,
    Bf16,
    E4m3,
    Scale,
}

impl Model {
    /// The configuration as Hugging Face has it.
    #[must_use]
    pub fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.q_heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "intermediate_size": self.ffn, "vocab_size": self.vocab, "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0, "tie_word_embeddings": false, "max_position_embeddings": 131_072, "eos_token_id": 2,
            "bos_token_id": 1, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64, "rope_type": "llama3"}
        })
    }

    fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        let plain = |tensors: &mut Vec<Tensor>, name: String, rows, cols, kind| {
            tensors.push(Tensor {
                name,
                rows,
                cols,
                kind,
            });
        };
        let table = |name: &str| (format!("{name}.weight"), self.vocab, self.hidden);
        let (name, rows, cols) = table("model.embed_tokens");
        plain(&mut tensors, name, rows, cols, Kind::Table);
        let (q, kv) = (self.q_heads * self.head_dim, self.kv_heads * self.head_dim);
        for layer in 0..self.layers {
            let prefix = format!("model.layers.{layer}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                plain(
                    &mut tensors,
                    format!("{prefix}.{norm}.weight"),
                    self.hidden,
                    0,
                    Kind::Norm,
                );
            }
            for (name, rows, cols) in [
                ("self_attn.q_proj", q, self.hidden),
                ("self_attn.k_proj", kv, self.hidden),
                ("self_attn.v_proj", kv, self.hidden),
                ("self_attn.o_proj", self.hidden, q),
                ("mlp.gate_proj", self.ffn, self.hidden),
                ("mlp.up_proj", self.ffn, self.hidden),
                ("mlp.down_proj", self.hidden, self.ffn),
            ] {
                let name = format!("{prefix}.{name}.weight");
                let edge = layer == 0 || layer + 1 == self.layers;
                let fp8 = match self.fp8 {
                    Fp8::None => false,
                    Fp8::AllLinear => true,
                    Fp8::Meta => name.contains("mlp") && !edge,
                };
                let kind = if fp8 { Kind::E4m3 } else { Kind::Bf16 };
                plain(&mut tensors, name.clone(), rows, cols, kind);
                if fp8 {
                    plain(&mut tensors, format!("{name}_scale"), rows, 1, Kind::Scale);
                }
            }
        }
        plain(
            &mut tensors,
            "model.norm.weight".into(),
            self.hidden,
            0,
            Kind::Norm,
        );
        let (name, rows, cols) = table("lm_head");
        plain(&mut tensors, name, rows, cols, Kind::Bf16);
        tensors
    }

    /// Write the checkpoint with random weights of this seed.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path, seed: u64) -> anyhow::Result<()> {
        let (mut file, _) = self.start(folder)?;
        let mut random = Random(seed);
        for tensor in self.tensors() {
            file.write_all(&tensor.values(&mut random))?;
        }
        file.flush()?;
        Ok(())
    }

    /// Write the checkpoint as a sparse file: every weight is zero and takes no room.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_sparse(&self, folder: &Path) -> anyhow::Result<()> {
        let (file, data) = self.start(folder)?;
        drop(file);
        let file = OpenOptions::new()
            .write(true)
            .open(folder.join("model.safetensors"))?;
        let header = file.metadata()?.len();
        file.set_len(header + data)?;
        Ok(())
    }

    /// Write the configuration and the header; the open file and the bytes of all tensors.
    fn start(&self, folder: &Path) -> anyhow::Result<(BufWriter<File>, u64)> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(folder.join("config.json"), self.config().to_string())?;
        let (mut header, mut end) = (Map::new(), 0u64);
        for tensor in self.tensors() {
            let start = end;
            end += tensor.bytes();
            let shape = match tensor.cols {
                0 => vec![tensor.rows],
                cols => vec![tensor.rows, cols],
            };
            let entry = json!({"dtype": tensor.kind.dtype(), "shape": shape, "data_offsets": [start, end]});
            header.insert(tensor.name, entry);
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(File::create(folder.join("model.safetensors"))?);
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(&text)?;
        file.flush()?;
        Ok((file, end))
    }
}

impl Kind {
    fn dtype(self) -> &'static str {
        match self {
            Self::Norm | Self::Table | Self::Bf16 => "BF16",
            Self::E4m3 => "F8_E4M3",
            Self::Scale => "F32",
        }
    }
}

impl Tensor {
    fn bytes(&self) -> u64 {
        let size = match self.kind {
            Kind::E4m3 => 1,
            Kind::Norm | Kind::Table | Kind::Bf16 => 2,
            Kind::Scale => 4,
        };
        (self.rows * self.cols.max(1) * size) as u64
    }

    fn values(&self, random: &mut Random) -> Vec<u8> {
        let count = self.rows * self.cols.max(1);
        // Rows keep about the size of what they multiply.
        let spread = 2.0 / (self.cols.max(1) as f32).sqrt();
        let halves = |random: &mut Random, spread: f32, middle: f32| -> Vec<u8> {
            (0..count)
                .flat_map(|_| bf16::from_f32(random.next() * spread + middle).to_le_bytes())
                .collect()
        };
        match self.kind {
            Kind::Norm => halves(random, 0.2, 1.0),
            Kind::Table => halves(random, 1.0, 0.0),
            Kind::Bf16 => halves(random, spread, 0.0),
            Kind::E4m3 => (0..count).map(|_| e4m3::encode(random.next() * 400.0)).collect(),
            // The scale's own matrix has as many columns as make this spread; every product stays near 1.
            Kind::Scale => (0..count)
                .flat_map(|_| ((1.0 + 0.3 * random.next()) * SCALE).to_le_bytes())
                .collect(),
        }
    }
}

/// Scale of rows of codes up to 400, for widths of a few hundred.
const SCALE: f32 = 2.0 / 400.0 / 20.0;

struct Random(u64);

impl Random {
    /// Uniform in -1 .. 1.
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
