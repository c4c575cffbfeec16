//! Llama 3.1's scaling of rotary frequencies.

use std::f64::consts::TAU;

use serde::Deserialize;
use serde_json::Value;

use super::{ConfigError, value};

/// The parameters of `rope_type: llama3`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Llama3Rope {
    /// By how much low frequencies are slowed.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are slowed in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context length before the extension, in tokens.
    pub original_max_position_embeddings: u32,
}

impl Llama3Rope {
    /// The frequency (radians a token) that replaces `frequency`; between the two wavelengths the slowed and the kept
    /// one are blended (Llama 3.1 reference model, `apply_scaling`).
    #[must_use]
    pub fn scale(&self, frequency: f64) -> f64 {
        let original = f64::from(self.original_max_position_embeddings);
        let wavelength = TAU / frequency;
        if wavelength < original / self.high_freq_factor {
            return frequency;
        }
        if wavelength > original / self.low_freq_factor {
            return frequency / self.factor;
        }
        let smooth =
            (original / wavelength - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

/// Base and scaling of the frequencies. Before transformers 5, `rope_theta` stands beside `rope_scaling`; since then both
/// are inside `rope_parameters`. Where fields disagree the rule is transformers' own: a `rope_scaling` that is not empty
/// replaces `rope_parameters`, and a base inside wins over the one beside.
pub(super) fn parse(config: &Value) -> Result<(f64, Option<Llama3Rope>), ConfigError> {
    let object = |field: &'static str| match config.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) if fields.is_empty() => Ok(None),
        Some(Value::Object(fields)) if fields.values().any(Value::is_object) => Err(value(
            field,
            &config[field],
            "one rotation for each kind of layer is not supported",
        )),
        Some(Value::Object(_)) => Ok(Some((field, &config[field]))),
        Some(other) => Err(value(field, other, "it must be an object or null")),
    };
    let given = match object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => object("rope_parameters")?,
    };
    let inside = given.and_then(|(_, fields)| fields.get("rope_theta"));
    let theta = match inside.or_else(|| config.get("rope_theta")) {
        None | Some(Value::Null) => 10_000.0,
        Some(theta) => theta
            .as_f64()
            .filter(|theta| theta.is_finite() && *theta > 1.0)
            .ok_or_else(|| value("rope_theta", theta, "it must be a number larger than 1"))?,
    };
    let scaling = match given {
        Some((field, fields)) => parse_scaling(field, fields)?,
        None => None,
    };
    Ok((theta, scaling))
}

/// None for the default, the parameters for llama3; anything else is refused.
fn parse_scaling(field: &'static str, json: &Value) -> Result<Option<Llama3Rope>, ConfigError> {
    let partial = json.get("partial_rotary_factor").filter(|part| !part.is_null());
    if let Some(part) = partial.filter(|part| part.as_f64() != Some(1.0)) {
        return Err(value(
            "partial_rotary_factor",
            part,
            "all of a head must be rotated",
        ));
    }
    let kind = json.get("rope_type").or_else(|| json.get("type"));
    match kind.map(|kind| kind.as_str().ok_or(kind)) {
        None | Some(Ok("default")) => Ok(None),
        Some(Ok("llama3")) => {
            let rope: Llama3Rope =
                serde_json::from_value(json.clone()).map_err(|source| ConfigError::Json {
                    path: "config.json".into(),
                    source,
                })?;
            let sound = rope.factor >= 1.0
                && rope.low_freq_factor > 0.0
                && rope.high_freq_factor > rope.low_freq_factor
                && rope.original_max_position_embeddings > 0;
            sound.then_some(Some(rope)).ok_or_else(|| {
                value(
                    field,
                    json,
                    "llama3 needs factor >= 1, high_freq_factor > low_freq_factor > 0",
                )
            })
        }
        Some(Ok(other)) => Err(value(
            field,
            other,
            "only \"default\" and \"llama3\" are supported",
        )),
        Some(Err(other)) => Err(value(field, other, "its rope_type must be a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROPE: Llama3Rope = Llama3Rope {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };

    #[test]
    fn keeps_slows_and_blends() {
        assert_eq!(ROPE.scale(1.0), 1.0);
        assert_eq!(ROPE.scale(1e-5), 1e-5 / 8.0);
        // Wavelength 4096 lies between 2048 and 8192: smooth = (2 - 1) / 3.
        let frequency = TAU / 4096.0;
        let wanted = frequency * (2.0 / 3.0 / 8.0 + 1.0 / 3.0);
        assert!((ROPE.scale(frequency) - wanted).abs() < 1e-15);
        // Continuous at both ends.
        for edge in [TAU / 2048.0, TAU / 8192.0] {
            let (below, above) = (ROPE.scale(edge * (1.0 - 1e-9)), ROPE.scale(edge * (1.0 + 1e-9)));
            assert!((below / above - 1.0).abs() < 1e-7);
        }
    }
}
