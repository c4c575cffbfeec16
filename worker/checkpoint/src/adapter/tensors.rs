//! The pairs of factors in a header, checked against the model.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

use std::collections::BTreeMap;

use super::config::LoraConfig;
use super::error::AdapterError;
use crate::LlamaConfig;
use crate::layout::{TensorId, TensorKind};
use crate::safetensors::{Header, TensorInfo};

/// What PEFT puts before the names of modules.
const PREFIX: &str = "base_model.model.";
/// What follows a module's name in that of its first factor.
const A: &str = ".lora_A.weight";
/// And of its second one.
const B: &str = ".lora_B.weight";

/// A matrix of the model that can be adapted.
pub type Module = TensorId;

/// The two factors of a module.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Their common size.
    pub rank: u32,
    /// What their product is multiplied by.
    pub scale: f32,
    /// Name of the tensor `[rank, inputs]`.
    pub a: String,
    /// Name of the tensor `[outputs, rank]`.
    pub b: String,
}

/// The kinds of matrices that can be adapted.
pub const KINDS: [TensorKind; 7] = [
    TensorKind::Q,
    TensorKind::K,
    TensorKind::V,
    TensorKind::O,
    TensorKind::Gate,
    TensorKind::Up,
    TensorKind::Down,
];

/// All pairs, by layer and kind.
///
/// # Errors
/// A tensor does not belong, lacks its other half, or has a shape, type or rank that does not fit.
pub fn check(
    config: &LoraConfig,
    header: &Header,
    model: &LlamaConfig,
    max_rank: u32,
) -> Result<Vec<(Module, Factors)>, AdapterError> {
    let mut pairs: BTreeMap<Module, [Option<&str>; 2]> = BTreeMap::new();
    for name in header.tensors.keys() {
        let (id, half) = read_name(name, model).ok_or_else(|| AdapterError::Tensor(shorten(name)))?;
        if let Some(slot) = pairs.entry(id).or_default().get_mut(half) {
            *slot = Some(name);
        }
    }
    if pairs.is_empty() {
        return Err(AdapterError::Empty);
    }
    let mut all = Vec::with_capacity(pairs.len());
    for (id, pair) in pairs {
        let [Some(a), Some(b)] = pair else {
            let (have, missing) = if pair.first().is_some_and(Option::is_some) {
                (A, B)
            } else {
                (B, A)
            };
            return Err(AdapterError::Half {
                have: format!("{id}{have}"),
                missing: format!("{id}{missing}"),
            });
        };
        let rank = config.rank(&id.module())?;
        if rank > max_rank {
            return Err(AdapterError::Rank {
                module: id.module(),
                rank: rank.into(),
                most: max_rank,
            });
        }
        let (outputs, inputs) = id.kind.shape(model);
        let ranks = u64::from(rank);
        check_tensor(header, a, [ranks, inputs], "[r, inputs]")?;
        check_tensor(header, b, [outputs, ranks], "[outputs, r]")?;
        let factors = Factors {
            rank,
            scale: config.scale(&id.module())?,
            a: a.to_owned(),
            b: b.to_owned(),
        };
        all.push((id, factors));
    }
    Ok(all)
}

fn check_tensor(header: &Header, name: &str, wanted: [u64; 2], form: &str) -> Result<(), AdapterError> {
    let Some(TensorInfo { dtype, shape, .. }) = header.tensors.get(name) else {
        return Err(AdapterError::Tensor(shorten(name)));
    };
    if shape[..] != wanted {
        return Err(AdapterError::Shape {
            name: shorten(name),
            shape: shape.iter().copied().take(8).collect(),
            wanted: format!("the model and the configuration ask for {form} = {wanted:?}"),
        });
    }
    if !dtype.is_plain_float() {
        return Err(AdapterError::Dtype {
            name: shorten(name),
            dtype: dtype.name(),
        });
    }
    Ok(())
}

/// Module and half (0: A, 1: B) of a tensor's name.
fn read_name(name: &str, model: &LlamaConfig) -> Option<(Module, usize)> {
    let rest = name.strip_prefix(PREFIX)?;
    let (module, half) = match rest.strip_suffix(A) {
        Some(module) => (module, 0),
        None => (rest.strip_suffix(B)?, 1),
    };
    let (layer, _) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let id = |kind| TensorId {
        layer: Some(layer),
        kind,
    };
    let found = KINDS.into_iter().map(id).find(|id| id.module() == module)?;
    (layer < model.layers).then_some((found, half))
}

/// A name from outside, short enough for a message.
fn shorten(name: &str) -> String {
    name.chars().take(160).collect()
}
