//! LoRA adapters (Hu et al., 2021) as PEFT saves them: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! In a module with the weights `W` an adapter adds `scale · B · (A · x)` to `W · x`; `A` is `[rank, inputs]`, `B` is
//! `[outputs, rank]`.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | `adapter_config.json` |
//! | [`tensors`] | the pairs of factors, checked against the model |
//! | `error` | why an adapter cannot be used |

pub mod config;
mod error;
pub mod tensors;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

pub use self::config::LoraConfig;
pub use self::error::AdapterError;
pub use self::tensors::{Factors, Module};
use crate::LlamaConfig;
use crate::dtype::{Dtype, extend_bf16, extend_f32};
use crate::identity::ContentIdentity;
use crate::io_error::{IoError, is_file};
use crate::safetensors::{Header, SafetensorsError, SafetensorsFile, TensorInfo};

/// The configuration's file.
pub const CONFIG_NAME: &str = "adapter_config.json";
/// The weights' file.
pub const WEIGHTS_NAME: &str = "adapter_model.safetensors";
/// The weights' file of old versions.
const PICKLE_NAME: &str = "adapter_model.bin";
/// Bytes of a configuration at most; real ones have one or two thousand.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Bytes of the weights' header at most; 126 layers with 14 factors each have less than half a MiB.
const MAX_HEADER_BYTES: u64 = 4 << 20;

type Digest = [u8; 32];

/// An open adapter whose shapes fit the model.
#[derive(Debug)]
pub struct Adapter {
    file: SafetensorsFile,
    modules: Vec<(Module, Factors)>,
    identity: ContentIdentity,
    /// What the identity was made of, by tensor: factors are read again, and must be the same then.
    digests: BTreeMap<String, Digest>,
}

impl Adapter {
    /// Open the adapter in `folder` for a model, with ranks up to `max_rank`. Reads both files whole once, to tell the content.
    ///
    /// # Errors
    /// It is not there, is damaged, is not supported, or was made for a model of another shape.
    pub fn open(folder: &Path, model: &LlamaConfig, max_rank: u32) -> Result<Self, AdapterError> {
        let (config, weights) = (folder.join(CONFIG_NAME), folder.join(WEIGHTS_NAME));
        let json = read_config(&config)?;
        if !is_file(&weights)? {
            let pickle = folder.join(PICKLE_NAME);
            return Err(match is_file(&pickle)? {
                true => AdapterError::Pickle { path: pickle },
                false => AdapterError::NotThere { path: weights },
            });
        }
        let config = LoraConfig::parse(&json)?;
        let file = SafetensorsFile::open_small(&weights, MAX_HEADER_BYTES).map_err(of_weights)?;
        let modules = tensors::check(&config, file.header(), model, max_rank)?;
        let (identity, digests) = identify(&json, &file)?;
        Ok(Self {
            file,
            modules,
            identity,
            digests,
        })
    }

    /// What the adapter is: a SHA-256 over both files.
    #[must_use]
    pub fn identity(&self) -> ContentIdentity {
        self.identity
    }

    /// The pairs of factors, by layer and module.
    #[must_use]
    pub fn modules(&self) -> &[(Module, Factors)] {
        &self.modules
    }

    /// The largest rank of any module.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.modules
            .iter()
            .map(|(_, factors)| factors.rank)
            .max()
            .unwrap_or(0)
    }

    /// A factor's values as little-endian bf16, row by row, rounded to nearest even where the file is wider. `name` is
    /// [`Factors::a`] or [`Factors::b`].
    ///
    /// # Errors
    /// It cannot be read, was written since the adapter was opened, or holds what is no finite number.
    pub fn bf16(&self, name: &str) -> Result<Vec<u8>, AdapterError> {
        let info = self
            .file
            .tensor(name)
            .ok_or_else(|| AdapterError::Tensor(name.to_owned()))?;
        let mut bytes = read_tensor(&self.file, name, info)?;
        if self.digests.get(name) != Some(&Sha256::digest(&bytes).into()) {
            return Err(AdapterError::Changed);
        }
        let mut values = Vec::new();
        extend_f32(info.dtype, &bytes, &mut values);
        if info.dtype != Dtype::BF16 {
            bytes.clear();
            extend_bf16(&values, &mut bytes);
        }
        // Rounding may have made an infinity of a large value.
        let is_finite = |value: &[u8; 2]| u16::from_le_bytes(*value) & 0x7f80 != 0x7f80;
        match bytes.as_chunks().0.iter().all(is_finite) {
            true => Ok(bytes),
            false => Err(AdapterError::NotFinite(name.to_owned())),
        }
    }
}

fn read_config(path: &Path) -> Result<Vec<u8>, AdapterError> {
    if !is_file(path)? {
        let path = path.to_path_buf();
        return Err(AdapterError::NotThere { path });
    }
    let mut json = Vec::new();
    let file = File::open(path).map_err(IoError::at("open", path))?;
    file.take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut json)
        .map_err(IoError::at("read", path))?;
    if json.len() as u64 > MAX_CONFIG_BYTES {
        let why = format!("it has more than {MAX_CONFIG_BYTES} bytes");
        return Err(AdapterError::Config(why));
    }
    Ok(json)
}

fn of_weights(error: SafetensorsError) -> AdapterError {
    match error {
        SafetensorsError::HeaderTooLong { length, limit, .. } => AdapterError::Header { length, limit },
        error => error.into(),
    }
}

fn read_tensor(file: &SafetensorsFile, name: &str, info: &TensorInfo) -> Result<Vec<u8>, AdapterError> {
    // Shapes were checked against the model, whose sizes are bounded.
    let mut bytes = vec![0; usize::try_from(info.bytes()).unwrap_or(0)];
    file.read_at(name, 0, &mut bytes)?;
    Ok(bytes)
}

/// The SHA-256 over both files, and one for each tensor. Tensors follow each other without a hole, so that all of them after the
/// header are the whole file.
fn identify(
    json: &[u8],
    file: &SafetensorsFile,
) -> Result<(ContentIdentity, BTreeMap<String, Digest>), AdapterError> {
    let mut hash = Sha256::new();
    hash.update((json.len() as u64).to_le_bytes());
    hash.update(json);
    let header = file.header_json()?;
    if Header::parse(&header).as_ref() != Ok(file.header()) {
        return Err(AdapterError::Changed);
    }
    hash.update((header.len() as u64).to_le_bytes());
    hash.update(&header);
    let mut tensors: Vec<_> = file.header().tensors.iter().collect();
    tensors.sort_by_key(|(_, info)| (info.range.start, info.range.end));
    let mut digests = BTreeMap::new();
    for (name, info) in tensors {
        let bytes = read_tensor(file, name, info)?;
        hash.update(&bytes);
        digests.insert(name.clone(), Sha256::digest(&bytes).into());
    }
    Ok((ContentIdentity::from_digest(hash.finalize().into()), digests))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt as _;

    use serde_json::{Map, Value, json};

    use super::*;

    /// Two layers, three query heads and one kv head of 4, hidden 12, feed-forward 16.
    fn model() -> LlamaConfig {
        LlamaConfig::from_json(json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 16, "vocab_size": 32,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64
        }))
        .unwrap()
    }

    fn name(module: &str, half: &str) -> String {
        format!("base_model.model.model.layers.{module}.lora_{half}.weight")
    }

    /// An adapter with rank 2 and α 4, and f32 tensors of these names and shapes, all filled with `value`.
    fn folder(tensors: &[(String, [usize; 2])], value: f32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": "all-linear"});
        fs::write(folder.path().join(CONFIG_NAME), config.to_string()).unwrap();
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, shape) in tensors {
            let start = data.len();
            (0..shape[0] * shape[1]).for_each(|_| data.extend(value.to_le_bytes()));
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(&data);
        fs::write(folder.path().join(WEIGHTS_NAME), file).unwrap();
        folder
    }

    fn good() -> Vec<(String, [usize; 2])> {
        vec![
            (name("0.self_attn.k_proj", "A"), [2, 12]),
            (name("0.self_attn.k_proj", "B"), [4, 2]),
            (name("1.mlp.down_proj", "A"), [2, 16]),
            (name("1.mlp.down_proj", "B"), [12, 2]),
        ]
    }

    #[test]
    fn a_good_adapter_is_read_and_named_by_its_content() {
        let folder_of_ones = folder(&good(), 1.0);
        let adapter = Adapter::open(folder_of_ones.path(), &model(), 2).unwrap();
        let modules: Vec<String> = adapter.modules().iter().map(|(id, _)| id.module()).collect();
        assert_eq!(
            modules,
            ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"]
        );
        let (_, factors) = &adapter.modules()[1];
        assert_eq!((factors.rank, factors.scale, adapter.rank()), (2, 2.0, 2));
        assert_eq!(adapter.bf16(&factors.b).unwrap(), [0x80, 0x3f].repeat(24));
        let same = Adapter::open(folder(&good(), 1.0).path(), &model(), 2).unwrap();
        let other = Adapter::open(folder(&good(), 1.5).path(), &model(), 2).unwrap();
        assert_eq!(adapter.identity(), same.identity());
        assert_ne!(adapter.identity(), other.identity());
    }

    #[test]
    fn damage_and_other_models_are_named() {
        let refusal = |tensors: &[(String, [usize; 2])], most: u32| {
            let folder = folder(tensors, 1.0);
            Adapter::open(folder.path(), &model(), most)
                .unwrap_err()
                .to_string()
        };
        assert!(refusal(&[], 8).contains("no tensors"));
        assert!(refusal(&good()[..3], 8).contains("model.layers.1.mlp.down_proj.lora_B"));
        assert!(refusal(&good(), 1).contains("rank 2"));
        let changed = |index: usize, entry: (String, [usize; 2])| {
            let mut tensors = good();
            tensors[index] = entry;
            refusal(&tensors, 8)
        };
        assert!(changed(1, (name("0.self_attn.k_proj", "B"), [12, 2])).contains("another model"));
        assert!(changed(0, (name("0.self_attn.k_proj", "A"), [3, 12])).contains("another model"));
        for stranger in ["2.self_attn.k_proj", "01.self_attn.k_proj", "0.self_attn.x_proj"] {
            assert!(
                changed(0, (name(stranger, "A"), [2, 12])).contains(stranger),
                "{stranger}"
            );
        }
        let head = "base_model.model.lm_head.lora_A.weight".to_owned();
        assert!(changed(0, (head, [2, 12])).contains("lm_head"));
    }

    #[test]
    fn values_that_are_no_finite_numbers_are_refused() {
        for value in [f32::NAN, f32::INFINITY, f32::MAX] {
            let folder = folder(&good(), value);
            let adapter = Adapter::open(folder.path(), &model(), 8).unwrap();
            let error = adapter.bf16(&adapter.modules()[0].1.a).unwrap_err();
            assert!(matches!(error, AdapterError::NotFinite(_)), "{error}");
        }
    }

    #[test]
    fn factors_that_are_written_after_the_identity_was_made_are_refused() {
        let (of_ones, of_twos) = (folder(&good(), 1.0), folder(&good(), 2.0));
        let adapter = Adapter::open(of_ones.path(), &model(), 8).unwrap();
        let factor = &adapter.modules()[0].1.a;
        adapter.bf16(factor).unwrap();
        // The same file with another content, as a trainer leaves it that writes in place.
        let weights = |folder: &tempfile::TempDir| folder.path().join(WEIGHTS_NAME);
        fs::write(weights(&of_ones), fs::read(weights(&of_twos)).unwrap()).unwrap();
        let error = adapter.bf16(factor).unwrap_err();
        assert!(matches!(error, AdapterError::Changed), "{error}");
    }

    #[test]
    fn the_identity_is_that_of_both_files_whole() {
        let folder = folder(&good(), 1.0);
        let [config, weights] =
            [CONFIG_NAME, WEIGHTS_NAME].map(|name| fs::read(folder.path().join(name)).unwrap());
        let whole = [&(config.len() as u64).to_le_bytes()[..], &config, &weights].concat();
        let wanted = ContentIdentity::from_digest(Sha256::digest(&whole).into());
        let adapter = Adapter::open(folder.path(), &model(), 8).unwrap();
        assert_eq!(adapter.identity(), wanted);
    }

    #[test]
    fn a_header_that_no_adapter_needs_is_refused_unread() {
        let folder = folder(&good(), 1.0);
        let path = folder.path().join(WEIGHTS_NAME);
        let refusal = |length: u64| {
            let file = File::create(&path).unwrap();
            // Zeros, which are no JSON.
            file.set_len(8 + length).unwrap();
            file.write_all_at(&length.to_le_bytes(), 0).unwrap();
            Adapter::open(folder.path(), &model(), 8).unwrap_err().to_string()
        };
        assert!(refusal(MAX_HEADER_BYTES).contains("not valid JSON"));
        let long = refusal(MAX_HEADER_BYTES + 1);
        assert!(long.contains("header of 4194305 bytes, and an adapter"), "{long}");
    }

    #[test]
    fn what_is_not_there_is_said() {
        let folder = folder(&good(), 1.0);
        fs::remove_file(folder.path().join(WEIGHTS_NAME)).unwrap();
        let refusal = || Adapter::open(folder.path(), &model(), 8).unwrap_err().to_string();
        assert!(refusal().contains("save_pretrained"));
        fs::write(folder.path().join(PICKLE_NAME), "x").unwrap();
        assert!(refusal().contains("pickle"));
        fs::write(
            folder.path().join(CONFIG_NAME),
            vec![b' '; MAX_CONFIG_BYTES as usize + 1],
        )
        .unwrap();
        assert!(refusal().contains("more than"));
        fs::remove_file(folder.path().join(CONFIG_NAME)).unwrap();
        assert!(refusal().contains(CONFIG_NAME));
    }
}
