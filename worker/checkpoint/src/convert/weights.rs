//! The tensors of a GGUF file as bf16 safetensors.

use std::collections::BTreeSet;

use super::ConvertError;
use crate::config::LlamaConfig;
use crate::dtype::{Dtype, extend_bf16};
use crate::error::Result;
use crate::gguf::{GgufFile, GgufTensor, unpermuted_row};
use crate::layout::{TensorId, TensorKind};
use crate::narrow::to_usize;
use crate::progress::{Meter, Progress};
use crate::safetensors::{OutputDir, ShardedWriter, TensorSpec};

/// Elements dequantised at a time.
const CHUNK: u64 = 1 << 21;

pub(super) fn write(
    gguf: &GgufFile,
    config: &LlamaConfig,
    output: &OutputDir,
    max_file_bytes: u64,
    report: &mut dyn FnMut(Progress),
) -> Result<()> {
    let wanted =
        || TensorId::all(config).filter(|id| id.kind != TensorKind::Head || !config.tie_word_embeddings);
    check_names(gguf, &wanted().map(gguf_name).collect())?;
    let mut specs = Vec::new();
    let mut sources = Vec::new();
    for id in wanted() {
        let tensor = source(gguf, config, id)?;
        let shape = if id.kind.is_norm() {
            vec![tensor.cols]
        } else {
            vec![tensor.rows, tensor.cols]
        };
        specs.push(TensorSpec {
            name: id.name(),
            dtype: Dtype::BF16,
            shape,
        });
        sources.push((id.kind, tensor));
    }
    let mut meter = Meter::new(specs.iter().map(TensorSpec::bytes).sum(), report);
    let mut writer = ShardedWriter::new(output, specs, max_file_bytes);
    let mut values = Vec::new();
    let mut bytes = Vec::new();
    for (kind, tensor) in sources {
        // Whole heads, so that the permutation stays inside a chunk.
        let unit = if matches!(kind, TensorKind::Q | TensorKind::K) {
            u64::from(config.head_dim)
        } else {
            1
        };
        let step = (CHUNK / tensor.cols / unit).max(1) * unit;
        let mut first = 0;
        while first < tensor.rows {
            let count = step.min(tensor.rows - first);
            values.clear();
            bytes.clear();
            gguf.read_f32(tensor, first, count, &mut values)?;
            if unit > 1 {
                for row in unpermuted(&values, tensor, unit) {
                    extend_bf16(row, &mut bytes);
                }
            } else {
                extend_bf16(&values, &mut bytes);
            }
            writer.append(&bytes)?;
            meter.add(bytes.len() as u64);
            first += count;
        }
    }
    Ok(writer.finish()?)
}

/// The tensor of the file that has the shape of the model's tensor `id`.
fn source<'a>(gguf: &'a GgufFile, config: &LlamaConfig, id: TensorId) -> Result<&'a GgufTensor> {
    let (wanted_rows, wanted_cols) = id.kind.shape(config);
    let name = gguf_name(id);
    let tensor = gguf.require_tensor(&name)?;
    let (rows, cols) = (tensor.rows, tensor.cols);
    if (rows, cols) == (wanted_rows, wanted_cols) {
        return Ok(tensor);
    }
    Err(ConvertError::Shape {
        tensor: name,
        rows,
        cols,
        wanted_rows,
        wanted_cols,
    }
    .into())
}

/// Every other tensor (a bias, an expert, a norm of heads) would change the answer. `rope_freqs.weight` has become part
/// of the configuration.
fn check_names(gguf: &GgufFile, wanted: &BTreeSet<String>) -> Result<(), ConvertError> {
    let other = gguf
        .tensors()
        .keys()
        .find(|name| !wanted.contains(*name) && *name != "rope_freqs.weight");
    other.map_or(Ok(()), |name| {
        Err(ConvertError::Unsupported {
            what: "a tensor that no Llama of this size has",
            found: name.clone(),
            supported: "only files whose every tensor is used can be converted",
        })
    })
}

/// The rows of `values` in the order of Hugging Face.
fn unpermuted<'a>(values: &'a [f32], tensor: &GgufTensor, head_dim: u64) -> impl Iterator<Item = &'a [f32]> {
    let cols = to_usize(tensor.cols);
    let rows = (values.len() / cols) as u64;
    (0..rows).map(move |row| {
        let from = to_usize(unpermuted_row(row, head_dim)) * cols;
        values.get(from..from + cols).unwrap_or_default()
    })
}

fn gguf_name(id: TensorId) -> String {
    let leaf = match id.kind {
        TensorKind::Embed => "token_embd",
        TensorKind::FinalNorm => "output_norm",
        TensorKind::Head => "output",
        TensorKind::InputNorm => "attn_norm",
        TensorKind::PostAttentionNorm => "ffn_norm",
        TensorKind::Q => "attn_q",
        TensorKind::K => "attn_k",
        TensorKind::V => "attn_v",
        TensorKind::O => "attn_output",
        TensorKind::Gate => "ffn_gate",
        TensorKind::Up => "ffn_up",
        TensorKind::Down => "ffn_down",
    };
    id.layer.map_or_else(
        || format!("{leaf}.weight"),
        |layer| format!("blk.{layer}.{leaf}.weight"),
    )
}
