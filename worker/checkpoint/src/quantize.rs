//! Row-wise FP8 as Meta's `fbgemm_fp8` stores it: `weight` F8_E4M3 `[N, K]` and `weight_scale` F32 `[N, 1]`.
//!
//! `scale = max(absmax / 448, 1 / (448 · 512))`, `code = e4m3(value / scale)`, all in f32; the guard keeps a row of
//! zeros from dividing by zero.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::convert::ConvertError;
use crate::dtype::{Dtype, extend_f32};
use crate::e4m3;
use crate::error::{IoError, Result};
use crate::layout::{ModelLayout, Tensor, TensorKind};
use crate::progress::{Meter, Progress};
use crate::safetensors::{OutputDir, ShardedWriter, TensorSpec};

/// The smallest scale of a row.
pub const MIN_SCALE: f32 = 1.0 / (448.0 * 512.0);
/// Meta's bound of activations before they are quantised on a GPU.
const ACTIVATION_SCALE_UB: f64 = 1200.0;
/// Elements quantised at a time.
const CHUNK: u64 = 1 << 21;
/// Files that are taken over as they are, where the source has them.
const COMPANIONS: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "USE_POLICY.md",
];

/// Options of [`to_fbgemm_fp8`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// Modules left as they are: exact names or dotted prefixes, such as `lm_head` or `model.layers.0`.
    pub keep: Vec<String>,
    /// Largest safetensors file, in bytes of data.
    pub max_file_bytes: u64,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self {
            keep: Vec::new(),
            max_file_bytes: 5_000_000_000,
        }
    }
}

impl QuantizeOptions {
    fn keeps(&self, module: &str) -> bool {
        self.keep.iter().any(|kept| {
            module
                .strip_prefix(kept.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

/// Quantise the Hugging Face folder `source` into the new folder `target`. A tied head becomes a matrix of its own,
/// quantised, while the embedding stays as it is. The folder appears whole or not at all.
///
/// # Errors
/// The source is damaged or quantised already, a weight is not finite, or the target is not empty.
pub fn to_fbgemm_fp8(
    source: &Path,
    target: &Path,
    options: &QuantizeOptions,
    report: &mut dyn FnMut(Progress),
) -> Result<()> {
    let checkpoint = Checkpoint::open(source)?;
    let layout = ModelLayout::check(&checkpoint)?;
    if let Some(tensor) = layout.tensors.iter().find(|tensor| tensor.scale.is_some()) {
        let (tensor, dtype) = (tensor.name.clone(), tensor.dtype);
        return Err(ConvertError::AlreadyQuantized { tensor, dtype }.into());
    }
    let tied = checkpoint.config().tie_word_embeddings;
    let quantized = |tensor: &Tensor| tensor.id.kind.is_linear() && !options.keeps(&tensor.id.module());
    // A tied head that is kept needs no copy.
    let untie = tied
        && layout
            .tensors
            .iter()
            .any(|tensor| tensor.id.kind == TensorKind::Head && quantized(tensor));
    let written = |tensor: &&Tensor| tensor.id.kind != TensorKind::Head || !tied || untie;

    let output = OutputDir::create(target)?;
    for name in COMPANIONS {
        let from = source.join(name);
        if from.is_file() {
            output.copy(name, &from)?;
        }
    }
    output.write_json("config.json", &quantized_config(source, tied && !untie, options)?)?;
    let specs: Vec<_> = layout
        .tensors
        .iter()
        .filter(written)
        .flat_map(|tensor| specs(tensor, quantized(tensor)))
        .collect();
    let mut meter = Meter::new(specs.iter().map(TensorSpec::bytes).sum(), report);
    let mut writer = ShardedWriter::new(&output, specs, options.max_file_bytes);
    for tensor in layout.tensors.iter().filter(written) {
        if quantized(tensor) {
            quantize(&checkpoint, tensor, &mut writer, &mut meter)?;
        } else {
            copy(&checkpoint, tensor, &mut writer, &mut meter)?;
        }
    }
    writer.finish()?;
    output.commit()
}

/// Quantise one row: append its codes, return its scale. None if a value is not finite.
pub fn quantize_row(values: &[f32], codes: &mut Vec<u8>) -> Option<f32> {
    let (mut largest, mut finite) = (0.0f32, true);
    for value in values {
        largest = largest.max(value.abs());
        finite &= value.is_finite();
    }
    let scale = (largest / e4m3::MAX).max(MIN_SCALE);
    codes.extend(values.iter().map(|value| e4m3::encode(value / scale)));
    finite.then_some(scale)
}

fn specs(tensor: &Tensor, quantized: bool) -> Vec<TensorSpec> {
    let (rows, cols) = (tensor.rows, tensor.cols);
    let shape = if tensor.id.kind.is_norm() {
        vec![cols]
    } else {
        vec![rows, cols]
    };
    let name = tensor.id.name();
    if !quantized {
        return vec![TensorSpec {
            name,
            dtype: tensor.dtype,
            shape,
        }];
    }
    let scale = TensorSpec {
        name: format!("{name}_scale"),
        dtype: Dtype::F32,
        shape: vec![rows, 1],
    };
    vec![
        TensorSpec {
            name,
            dtype: Dtype::F8E4M3,
            shape,
        },
        scale,
    ]
}

fn quantized_config(source: &Path, tied: bool, options: &QuantizeOptions) -> Result<Value> {
    let path = source.join("config.json");
    let bytes = fs::read(&path).map_err(IoError::at("read", &path))?;
    let mut config: Value =
        serde_json::from_slice(&bytes).map_err(|source| crate::config::ConfigError::Json {
            path: path.clone(),
            source,
        })?;
    config["tie_word_embeddings"] = json!(tied);
    config["quantization_config"] = json!({
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": ACTIVATION_SCALE_UB,
        "modules_to_not_convert": options.keep,
    });
    Ok(config)
}

/// Call `each` with the bytes of whole rows of `tensor` and the number of the first.
fn for_rows(
    checkpoint: &Checkpoint,
    tensor: &Tensor,
    each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let row_bytes = tensor.cols * tensor.dtype.size();
    let step = (CHUNK / tensor.cols).max(1);
    let mut buffer = Vec::new();
    let mut first = 0;
    while first < tensor.rows {
        let count = step.min(tensor.rows - first);
        buffer.resize((count * row_bytes) as usize, 0);
        checkpoint.read_at(&tensor.name, first * row_bytes, &mut buffer)?;
        each(first, &buffer)?;
        first += count;
    }
    Ok(())
}

fn copy(
    checkpoint: &Checkpoint,
    tensor: &Tensor,
    writer: &mut ShardedWriter<'_>,
    meter: &mut Meter<'_>,
) -> Result<()> {
    for_rows(checkpoint, tensor, &mut |_, bytes| {
        writer.append(bytes)?;
        meter.add(bytes.len() as u64);
        Ok(())
    })
}

fn quantize(
    checkpoint: &Checkpoint,
    tensor: &Tensor,
    writer: &mut ShardedWriter<'_>,
    meter: &mut Meter<'_>,
) -> Result<()> {
    let mut scales = Vec::new();
    let (mut values, mut codes) = (Vec::new(), Vec::new());
    for_rows(checkpoint, tensor, &mut |first, bytes| {
        values.clear();
        codes.clear();
        extend_f32(tensor.dtype, bytes, &mut values);
        for (row, values) in (first..).zip(values.chunks_exact(tensor.cols as usize)) {
            let scale = quantize_row(values, &mut codes).ok_or_else(|| ConvertError::NotFinite {
                tensor: tensor.name.clone(),
                row,
            })?;
            scales.extend_from_slice(&scale.to_le_bytes());
        }
        writer.append(&codes)?;
        meter.add(codes.len() as u64);
        Ok(())
    })?;
    writer.append(&scales)?;
    meter.add(scales.len() as u64);
    Ok(())
}
