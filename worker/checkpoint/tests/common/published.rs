//! Small checkpoints in the layout of their publishers: the true configuration files with small sizes, random weights.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::bf16;
use llamero_checkpoint::layout::TensorId;
use llamero_checkpoint::load::{Rows, Sink, SinkError, load_rank};
use llamero_checkpoint::{Checkpoint, Dtype, LlamaConfig, ModelLayout, ShardPlan, TensorKind, Topology};
use serde_json::{Map, Value, json};

use super::header;

/// Layers of the small models: more than two, so that the first, the last and others differ.
pub const LAYERS: u32 = 4;

/// How the scale of a matrix is stored.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// `[N, 1]`.
    Column,
    /// `[N]`.
    Rows,
    /// `[1]`.
    One,
    /// `[]`.
    Scalar,
}

/// How one matrix is stored: F8_E4M3 with a scale of that leaf, type and shape, or bf16.
pub type Form = Option<(&'static str, Dtype, Shape)>;

/// A small checkpoint and what its weights mean.
pub struct Published {
    pub folder: tempfile::TempDir,
    pub values: BTreeMap<TensorId, Vec<f32>>,
}

/// The configuration files of that publisher with their true sizes, by name.
pub fn files(name: &str) -> BTreeMap<String, Value> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/published"].iter().collect();
    serde_json::from_slice(&fs::read(path.join(format!("{name}.json"))).unwrap()).unwrap()
}

/// Make the model small; heads stay wide enough to be told apart.
pub fn shrink(config: &mut Value) {
    for (field, size) in [
        ("hidden_size", 64),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("intermediate_size", 256),
        ("vocab_size", 300),
    ] {
        config[field] = json!(size);
    }
    if let Some(head_dim) = config.get_mut("head_dim") {
        *head_dim = json!(16);
    }
}

/// Write the checkpoint of that publisher in bf16 with a changed configuration.
pub fn write_bf16(name: &str, change: impl FnOnce(&mut Value)) -> Published {
    write_changed(name, change, |_| None, |_| vec![])
}

/// Write the checkpoint of that publisher. `form` says how a matrix is stored; `companions` names the leaves that lie
/// beside a matrix and do not matter.
pub fn write(
    name: &str,
    form: impl Fn(TensorId) -> Form,
    companions: impl Fn(TensorId) -> Vec<&'static str>,
) -> Published {
    write_changed(name, |_| (), form, companions)
}

fn write_changed(
    name: &str,
    change: impl FnOnce(&mut Value),
    form: impl Fn(TensorId) -> Form,
    companions: impl Fn(TensorId) -> Vec<&'static str>,
) -> Published {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(name);
    let config = files.get_mut("config.json").unwrap();
    shrink(config);
    change(config);
    for (file, json) in &files {
        fs::write(folder.path().join(file), json.to_string()).unwrap();
    }
    let config = LlamaConfig::read(&folder.path().join("config.json")).unwrap();
    let mut random = Random(1);
    let mut values = BTreeMap::new();
    let mut tensors = Vec::new();
    for id in TensorId::all(&config).filter(|id| id.kind != TensorKind::Head || !config.tie_word_embeddings) {
        let (rows, cols) = id.kind.shape(&config);
        let shape = if id.kind.is_norm() {
            vec![cols]
        } else {
            vec![rows, cols]
        };
        let meaning = match form(id) {
            Some((leaf, dtype, form)) => {
                let codes = random.codes(rows * cols);
                let scales = random.scales(dtype, form, rows);
                let meaning = codes
                    .chunks(cols as usize)
                    .zip(scales.values.iter().cycle())
                    .flat_map(|(row, scale)| {
                        row.iter()
                            .map(move |code| llamero_checkpoint::e4m3::decode(*code) * scale)
                    });
                let meaning = meaning.collect();
                tensors.push((id.name(), Dtype::F8E4M3, shape, codes));
                tensors.push((
                    format!("{}.{leaf}", id.module()),
                    dtype,
                    scales.shape,
                    scales.bytes,
                ));
                meaning
            }
            None => {
                let (bytes, meaning) = random.plain(rows * cols);
                tensors.push((id.name(), Dtype::BF16, shape, bytes));
                meaning
            }
        };
        values.insert(id, meaning);
        for leaf in companions(id) {
            let bytes = 0.5f32.to_le_bytes().to_vec();
            tensors.push((format!("{}.{leaf}", id.module()), Dtype::F32, vec![], bytes));
        }
    }
    write_files(folder.path(), &tensors);
    Published { folder, values }
}

/// Three files with the names that transformers gives, and their index.
fn write_files(folder: &Path, tensors: &[(String, Dtype, Vec<u64>, Vec<u8>)]) {
    let mut weight_map = Map::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(3)).enumerate() {
        let name = format!("model-{:05}-of-00003.safetensors", number + 1);
        let listed: Vec<_> = part
            .iter()
            .map(|(name, dtype, shape, _)| (name.clone(), *dtype, shape.clone()))
            .collect();
        let header = header(&listed).0.to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        part.iter().for_each(|(.., bytes)| file.extend(bytes));
        fs::write(folder.join(&name), file).unwrap();
        weight_map.extend(part.iter().map(|(tensor, ..)| (tensor.clone(), json!(name))));
    }
    let index = json!({"metadata": {}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// What one rank that holds everything is given, as values: code times scale, or the plain value.
pub fn loaded(checkpoint: &Checkpoint) -> BTreeMap<TensorId, Vec<f32>> {
    let layout = ModelLayout::check(checkpoint).unwrap();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(1)).unwrap();
    let sink = Values(Mutex::default());
    let mut watch = |_| ControlFlow::Continue(());
    // One thread hands rows over in their order.
    load_rank(checkpoint, &layout, plan.member(0).unwrap(), 1, &sink, &mut watch).unwrap();
    sink.0.into_inner().unwrap()
}

/// Keeps the values of all tensors.
struct Values(Mutex<BTreeMap<TensorId, Vec<f32>>>);

impl Sink for Values {
    type Scratch = ();

    fn put(&self, rows: &Rows<'_>, (): &mut ()) -> Result<(), SinkError> {
        let mut values = self.0.lock().unwrap();
        let all = values.entry(rows.piece.tensor.id).or_default();
        let from = all.len();
        assert!(llamero_checkpoint::dtype::extend_f32(
            rows.piece.tensor.dtype,
            rows.bytes,
            all
        ));
        let each = all[from..].chunks_mut((rows.bytes.len() as u64 / rows.count) as usize);
        each.zip(rows.scales)
            .for_each(|(row, scale)| row.iter_mut().for_each(|value| *value *= scale));
        Ok(())
    }
}

struct Scales {
    values: Vec<f32>,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// A linear congruential generator; the constants are those of Numerical Recipes.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    /// Codes of E4M3 that are numbers.
    fn codes(&mut self, count: u64) -> Vec<u8> {
        let code = |_| match (self.next() >> 8) as u8 {
            nan @ (0x7f | 0xff) => nan - 1,
            code => code,
        };
        (0..count).map(code).collect()
    }

    fn plain(&mut self, count: u64) -> (Vec<u8>, Vec<f32>) {
        let values: Vec<bf16> = (0..count)
            .map(|_| bf16::from_f32(self.next() as f32 / (1 << 23) as f32 - 1.0))
            .collect();
        (
            values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            values.iter().map(|value| value.to_f32()).collect(),
        )
    }

    fn scales(&mut self, dtype: Dtype, form: Shape, rows: u64) -> Scales {
        let (count, shape) = match form {
            Shape::Column => (rows, vec![rows, 1]),
            Shape::Rows => (rows, vec![rows]),
            Shape::One => (1, vec![1]),
            Shape::Scalar => (1, vec![]),
        };
        let values = (0..count).map(|_| (1 + self.next()) as f32 / (1 << 30) as f32);
        let values: Vec<f32> = match dtype {
            Dtype::BF16 => values.map(|scale| bf16::from_f32(scale).to_f32()).collect(),
            _ => values.collect(),
        };
        let bytes = match dtype {
            Dtype::BF16 => values
                .iter()
                .flat_map(|scale| bf16::from_f32(*scale).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
        };
        Scales { values, shape, bytes }
    }
}
