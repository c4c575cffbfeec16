//! Row-wise FP8: `weight` F8_E4M3 `[N, K]` and `weight_scale` F32 `[N, 1]`, announced as Meta's `fbgemm_fp8` or as
//! Red Hat's compressed-tensors; the bytes are the same.
//!
//! `scale = max(absmax / 448, 1 / (448 · 512))`, `code = e4m3(value / scale)`, all in f32; the guard keeps a row of
//! zeros from dividing by zero.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::companions::SMALL_FILES;
use crate::convert::ConvertError;
use crate::dtype::{Dtype, extend_f32};
use crate::e4m3;
use crate::error::Result;
use crate::identity::ContentIdentity;
use crate::io_error::{IoError, is_file};
use crate::layout::{ModelLayout, Tensor, TensorId, TensorKind};
use crate::narrow::to_usize;
use crate::progress::{Meter, Progress};
use crate::safetensors::{OutputDir, ShardedWriter, TensorSpec};

/// The smallest scale of a row.
pub const MIN_SCALE: f32 = 1.0 / (448.0 * 512.0);
/// Meta's bound of activations before they are quantised on a GPU.
const ACTIVATION_SCALE_UB: f64 = 1200.0;
/// Elements quantised at a time.
const CHUNK: u64 = 1 << 21;
/// How the configuration announces the weights, and which matrices are quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// `fbgemm_fp8`, every matrix of every layer.
    #[default]
    FbgemmFp8,
    /// `fbgemm_fp8` as Meta's 405B has it: the feed-forward layers only, without those of the first and last layer.
    FbgemmFp8Meta,
    /// compressed-tensors `float-quantized` with one scale a row (`channel`), every matrix of every layer.
    CompressedTensorsChannel,
}

/// Options of [`to_fp8`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// The form.
    pub scheme: Scheme,
    /// Whether the head is quantised too, which no publisher does: it costs accuracy and saves little.
    pub head: bool,
    /// Further modules left as they are: exact names or dotted prefixes, such as `model.layers.0`.
    pub keep: Vec<String>,
    /// Largest safetensors file, in bytes of data.
    pub max_file_bytes: u64,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self {
            scheme: Scheme::default(),
            head: false,
            keep: Vec::new(),
            max_file_bytes: 5_000_000_000,
        }
    }
}

impl QuantizeOptions {
    /// Whether a matrix of a model of `layers` layers is quantised.
    fn quantizes(&self, id: TensorId, layers: u32) -> bool {
        let module = id.module();
        let kept = self.keep.iter().any(|kept| {
            module
                .strip_prefix(kept.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        let by_scheme = match (id.kind, id.layer) {
            (TensorKind::Head, _) => self.head,
            (kind, Some(layer)) if self.scheme == Scheme::FbgemmFp8Meta => {
                kind.is_feed_forward() && layer != 0 && layer + 1 != layers
            }
            _ => true,
        };
        id.kind.is_linear() && by_scheme && !kept
    }
}

/// Quantise the Hugging Face folder `source` into the new folder `target`. A tied head that is
/// quantised becomes a matrix of its own, while the embedding stays as it is. The folder appears whole or not at all; after an
/// interruption the same call goes on behind the last file that was finished. Some megabytes of memory are used, whatever the
/// size of the model.
///
/// # Errors
/// The source is damaged or quantised already, a weight is not finite, nothing would be quantised, or the target is not
/// empty.
pub fn to_fp8(
    source: &Path,
    target: &Path,
    options: &QuantizeOptions,
    report: &mut dyn FnMut(Progress),
) -> Result<()> {
    let checkpoint = Checkpoint::open(source)?;
    checkpoint.check_whole()?;
    let layout = ModelLayout::check(&checkpoint)?;
    if let Some(tensor) = layout.tensors.iter().find(|tensor| tensor.scale.is_some()) {
        let (tensor, dtype) = (tensor.name.clone(), tensor.dtype);
        return Err(ConvertError::AlreadyQuantized { tensor, dtype }.into());
    }
    let tied = checkpoint.config().tie_word_embeddings;
    let layers = checkpoint.config().layers;
    let quantized = |tensor: &Tensor| options.quantizes(tensor.id, layers);
    if !layout.tensors.iter().any(quantized) {
        return Err(ConvertError::NothingToQuantize { layers }.into());
    }
    // A tied head that is kept needs no copy.
    let untie = tied
        && layout
            .tensors
            .iter()
            .any(|tensor| tensor.id.kind == TensorKind::Head && quantized(tensor));
    let written = |tensor: &&Tensor| tensor.id.kind != TensorKind::Head || !tied || untie;

    let identity = ContentIdentity::of(&checkpoint)?;
    let output = OutputDir::resume(target, &format!("{identity} {options:?}"))?;
    for name in SMALL_FILES {
        let from = source.join(name);
        if is_file(&from)? {
            output.copy(name, &from)?;
        }
    }
    let left = layout
        .tensors
        .iter()
        .filter(|tensor| tensor.id.kind.is_linear() && !quantized(tensor))
        .map(|tensor| tensor.id.module())
        .collect();
    output.write_json(
        "config.json",
        &quantized_config(source, tied && !untie, options.scheme, left)?,
    )?;
    let announced: Vec<_> = layout
        .tensors
        .iter()
        .filter(written)
        .flat_map(|tensor| specs(tensor, quantized(tensor)))
        .collect();
    let mut meter = Meter::new(announced.iter().map(TensorSpec::bytes).sum(), report);
    let mut writer = ShardedWriter::new(&output, announced, options.max_file_bytes);
    for tensor in layout.tensors.iter().filter(written) {
        let finished = writer.skip_finished(specs(tensor, quantized(tensor)).len())?;
        if finished > 0 {
            meter.add(finished);
        } else if quantized(tensor) {
            quantize(&checkpoint, tensor, &mut writer, &mut meter)?;
        } else {
            copy(&checkpoint, tensor, &mut writer, &mut meter)?;
        }
    }
    writer.finish()?;
    Ok(output.commit()?)
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

/// The source's configuration with the scheme. `left` names every matrix that is not quantised, leaf by leaf: readers
/// differ in what they make of a prefix, a whole name is understood by all.
fn quantized_config(source: &Path, tied: bool, scheme: Scheme, left: Vec<String>) -> Result<Value> {
    let path = source.join("config.json");
    let bytes = fs::read(&path).map_err(IoError::at("read", &path))?;
    let mut config: Value =
        serde_json::from_slice(&bytes).map_err(|source| crate::config::ConfigError::Json {
            path: path.clone(),
            source,
        })?;
    let quantization = match scheme {
        Scheme::FbgemmFp8 | Scheme::FbgemmFp8Meta => json!({
            "quant_method": "fbgemm_fp8",
            "activation_scale_ub": ACTIVATION_SCALE_UB,
            "modules_to_not_convert": left,
        }),
        Scheme::CompressedTensorsChannel => compressed_tensors(left),
    };
    // What is no object was refused when the checkpoint was opened.
    if let Some(fields) = config.as_object_mut() {
        fields.insert("tie_word_embeddings".to_owned(), json!(tied));
        fields.insert("quantization_config".to_owned(), quantization);
    }
    Ok(config)
}

/// As `llm-compressor` writes its scheme `FP8_DYNAMIC`.
fn compressed_tensors(left: Vec<String>) -> Value {
    let float8 = |strategy: &str, dynamic: bool| {
        json!({
            "num_bits": 8, "type": "float", "symmetric": true, "strategy": strategy, "dynamic": dynamic,
            "group_size": null, "block_structure": null, "actorder": null,
        })
    };
    json!({
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": null,
        "config_groups": { "group_0": {
            "targets": ["Linear"],
            "weights": float8("channel", false),
            "input_activations": float8("token", true),
            "output_activations": null,
        } },
        "ignore": left,
    })
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
        buffer.resize(to_usize(count * row_bytes), 0);
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
        for (row, values) in (first..).zip(values.chunks_exact(to_usize(tensor.cols))) {
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
