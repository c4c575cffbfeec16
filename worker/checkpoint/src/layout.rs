//! The logical tensors of a Llama model, checked against the headers of a checkpoint.
//!
//! The dtype in the header decides how a matrix is stored, not the configuration's list of modules: Meta's 405B keeps
//! attention and two whole layers in bf16, others quantise everything but the head.

use std::fmt;

use crate::checkpoint::Checkpoint;
use crate::companions;
use crate::config::LlamaConfig;
use crate::dtype::Dtype;
use crate::tied::check_own_head;

pub use crate::error::LayoutError;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorKind {
    /// Token embedding `[vocab, hidden]`.
    Embed,
    /// Norm before attention `[hidden]`.
    InputNorm,
    /// Query projection `[q_heads · head_dim, hidden]`.
    Q,
    /// Key projection `[kv_heads · head_dim, hidden]`.
    K,
    /// Value projection `[kv_heads · head_dim, hidden]`.
    V,
    /// Output projection of attention `[hidden, q_heads · head_dim]`.
    O,
    /// Norm before the feed-forward layer `[hidden]`.
    PostAttentionNorm,
    /// Gate projection `[ffn, hidden]`.
    Gate,
    /// Up projection `[ffn, hidden]`.
    Up,
    /// Down projection `[hidden, ffn]`.
    Down,
    /// Last norm `[hidden]`.
    FinalNorm,
    /// Output head `[vocab, hidden]`; of a tied model the embedding.
    Head,
}

impl TensorKind {
    /// The kinds of one layer, in the order in which they are loaded.
    pub const OF_LAYER: [Self; 9] = [
        Self::InputNorm,
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::PostAttentionNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Whether it is one vector of norm weights.
    #[must_use]
    pub fn is_norm(self) -> bool {
        matches!(self, Self::InputNorm | Self::PostAttentionNorm | Self::FinalNorm)
    }

    /// Whether it is a matrix that may be quantised: every one but the embedding.
    #[must_use]
    pub fn is_linear(self) -> bool {
        !self.is_norm() && self != Self::Embed
    }

    /// Whether it is a matrix of the feed-forward layer.
    #[must_use]
    pub fn is_feed_forward(self) -> bool {
        matches!(self, Self::Gate | Self::Up | Self::Down)
    }

    /// Rows and columns; a norm is one row.
    #[must_use]
    pub fn shape(self, config: &LlamaConfig) -> (u64, u64) {
        let hidden = u64::from(config.hidden_size);
        let q = u64::from(config.q_heads) * u64::from(config.head_dim);
        let kv = u64::from(config.kv_heads) * u64::from(config.head_dim);
        match self {
            Self::Embed | Self::Head => (u64::from(config.vocab_size), hidden),
            Self::InputNorm | Self::PostAttentionNorm | Self::FinalNorm => (1, hidden),
            Self::Q => (q, hidden),
            Self::K | Self::V => (kv, hidden),
            Self::O => (hidden, q),
            Self::Gate | Self::Up => (u64::from(config.ffn_size), hidden),
            Self::Down => (hidden, u64::from(config.ffn_size)),
        }
    }
}

/// One logical tensor of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId {
    /// The layer, for what belongs to one.
    pub layer: Option<u32>,
    /// What it is for.
    pub kind: TensorKind,
}

impl TensorId {
    /// All tensors of a model in the order in which they are loaded: embedding, layers, last norm, head.
    pub fn all(config: &LlamaConfig) -> impl Iterator<Item = Self> + use<> {
        let global = |kind| Self { layer: None, kind };
        let layers = (0..config.layers).flat_map(|layer| {
            TensorKind::OF_LAYER.map(|kind| Self {
                layer: Some(layer),
                kind,
            })
        });
        [global(TensorKind::Embed)]
            .into_iter()
            .chain(layers)
            .chain([global(TensorKind::FinalNorm), global(TensorKind::Head)])
    }

    /// The module's name in Hugging Face's checkpoints, without `.weight`.
    #[must_use]
    pub fn module(self) -> String {
        let leaf = match self.kind {
            TensorKind::Embed => "model.embed_tokens",
            TensorKind::FinalNorm => "model.norm",
            TensorKind::Head => "lm_head",
            TensorKind::InputNorm => "input_layernorm",
            TensorKind::PostAttentionNorm => "post_attention_layernorm",
            TensorKind::Q => "self_attn.q_proj",
            TensorKind::K => "self_attn.k_proj",
            TensorKind::V => "self_attn.v_proj",
            TensorKind::O => "self_attn.o_proj",
            TensorKind::Gate => "mlp.gate_proj",
            TensorKind::Up => "mlp.up_proj",
            TensorKind::Down => "mlp.down_proj",
        };
        self.layer
            .map_or_else(|| leaf.to_owned(), |layer| format!("model.layers.{layer}.{leaf}"))
    }

    /// The name of its weight in Hugging Face's checkpoints.
    #[must_use]
    pub fn name(self) -> String {
        self.module() + ".weight"
    }
}

impl fmt::Display for TensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.module())
    }
}

/// The scale of an FP8 matrix: `value = code · scale`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Name in the checkpoint.
    pub name: String,
    /// F32, BF16 or F16.
    pub dtype: Dtype,
    /// One scale a row; otherwise one for the whole matrix.
    pub per_row: bool,
}

/// A logical tensor and how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Which tensor of the model.
    pub id: TensorId,
    /// Name in the checkpoint.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Rows (outputs); 1 for a norm.
    pub rows: u64,
    /// Columns (inputs).
    pub cols: u64,
    /// The scale, for F8_E4M3.
    pub scale: Option<Scale>,
}

const EMBED: TensorId = TensorId {
    layer: None,
    kind: TensorKind::Embed,
};
const HEAD: TensorId = TensorId {
    layer: None,
    kind: TensorKind::Head,
};

/// All tensors of a checkpoint that fits its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelLayout {
    /// In the order of [`TensorId::all`].
    pub tensors: Vec<Tensor>,
}

impl ModelLayout {
    /// Check every tensor's presence, shape, type and scale from the headers. Of a tied model that has a head
    /// nevertheless, samples of both tables are compared.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn check(checkpoint: &Checkpoint) -> Result<Self, LayoutError> {
        let tensors = TensorId::all(checkpoint.config()).map(|id| check_tensor(checkpoint, id));
        let layout = Self {
            tensors: tensors.collect::<Result<_, _>>()?,
        };
        companions::check(
            checkpoint,
            &TensorId::all(checkpoint.config()).map(TensorId::module).collect(),
        )?;
        if layout.is_tied() && checkpoint.presharded().is_none() {
            check_own_head(checkpoint, &HEAD.name(), &EMBED.name())?;
        }
        Ok(layout)
    }

    /// Whether one table serves as embedding and as head.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.get(HEAD).is_some_and(|head| head.name == EMBED.name())
    }

    /// The tensor with that identity.
    #[must_use]
    pub fn get(&self, id: TensorId) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.id == id)
    }
}

fn check_tensor(checkpoint: &Checkpoint, id: TensorId) -> Result<Tensor, LayoutError> {
    let config = checkpoint.config();
    let name = if id.kind == TensorKind::Head && config.tie_word_embeddings {
        EMBED.name()
    } else {
        id.name()
    };
    let info = checkpoint
        .tensor(&name)
        .ok_or_else(|| LayoutError::Missing { name: name.clone() })?;
    let (rows, cols) = id.kind.shape(config);
    let expected = if id.kind.is_norm() {
        vec![cols]
    } else {
        vec![rows, cols]
    };
    if info.shape != expected {
        let hint = match id.kind {
            TensorKind::K | TensorKind::V => {
                "; if num_key_value_heads is right, the file may be an early upload with duplicated kv heads: \
                 download the corrected one"
            }
            TensorKind::Embed | TensorKind::Head => "; check vocab_size",
            _ => "",
        };
        return Err(LayoutError::Shape {
            name,
            found: info.shape.clone(),
            expected,
            hint,
        });
    }
    let scale = match info.dtype {
        Dtype::F8E4M3 if id.kind.is_linear() => Some(check_scale(checkpoint, &name, rows)?),
        dtype if dtype.is_plain_float() => None,
        found => {
            let wanted = if id.kind.is_linear() {
                "BF16, F16, F32 or F8_E4M3"
            } else {
                "BF16, F16 or F32"
            };
            return Err(LayoutError::Dtype { name, found, wanted });
        }
    };
    Ok(Tensor {
        id,
        name,
        dtype: info.dtype,
        rows,
        cols,
        scale,
    })
}

fn check_scale(checkpoint: &Checkpoint, weight: &str, rows: u64) -> Result<Scale, LayoutError> {
    // transformers' own fp8 writes `weight_scale_inv`, which is multiplied all the same.
    let names = [format!("{weight}_scale"), format!("{weight}_scale_inv")];
    let found = names
        .iter()
        .find_map(|name| Some((name.clone(), checkpoint.tensor(name)?)));
    let [missing, _] = names;
    let (name, info) = found.ok_or(LayoutError::Missing { name: missing })?;
    let per_row = match info.shape.as_slice() {
        [] | [1] | [1, 1] => false,
        [count] | [count, 1] if *count == rows => true,
        _ => {
            return Err(LayoutError::ScaleShape {
                name,
                found: info.shape.clone(),
                rows,
            });
        }
    };
    if !info.dtype.is_plain_float() {
        return Err(LayoutError::Dtype {
            name,
            found: info.dtype,
            wanted: "F32, BF16 or F16",
        });
    }
    Ok(Scale {
        name,
        dtype: info.dtype,
        per_row,
    })
}
