//! Element types of safetensors files and the conversions that loading and converting need.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// An element type, named as in the safetensors header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Dtype {
    #[serde(rename = "BOOL")]
    Bool,
    U8,
    I8,
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
}

impl Dtype {
    const NAMES: [(Self, &'static str, u64); 15] = [
        (Self::Bool, "BOOL", 1),
        (Self::U8, "U8", 1),
        (Self::I8, "I8", 1),
        (Self::F8E5M2, "F8_E5M2", 1),
        (Self::F8E4M3, "F8_E4M3", 1),
        (Self::I16, "I16", 2),
        (Self::U16, "U16", 2),
        (Self::F16, "F16", 2),
        (Self::BF16, "BF16", 2),
        (Self::I32, "I32", 4),
        (Self::U32, "U32", 4),
        (Self::F32, "F32", 4),
        (Self::F64, "F64", 8),
        (Self::I64, "I64", 8),
        (Self::U64, "U64", 8),
    ];

    /// The type of that name in a safetensors header.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|entry| entry.1 == name)
            .map(|entry| entry.0)
    }

    /// The name in a safetensors header.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "the table has every type, in their order")]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// Bytes of one element.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "the table has every type, in their order")]
    pub fn size(self) -> u64 {
        Self::NAMES[self as usize].2
    }

    /// Whether a weight matrix may have this type without a scale.
    #[must_use]
    pub fn is_plain_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Append the values of little-endian `bytes` to `out` as f32, exactly. Types other than F32, F16, BF16 and F8_E4M3
/// append nothing and return false. A trailing part of an element is ignored.
pub fn extend_f32(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) -> bool {
    match dtype {
        Dtype::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::F16 => out.extend(
            bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32()),
        ),
        Dtype::BF16 => out.extend(
            bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32()),
        ),
        Dtype::F8E4M3 => out.extend(bytes.iter().map(|b| crate::e4m3::decode(*b))),
        _ => return false,
    }
    true
}

/// Append `values` to `out` as little-endian bf16, rounded to nearest even.
pub fn extend_bf16(values: &[f32], out: &mut Vec<u8>) {
    out.extend(
        values
            .iter()
            .flat_map(|value| bf16::from_f32(*value).to_le_bytes()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (dtype, name, _) in Dtype::NAMES {
            assert_eq!(dtype.name(), name);
            assert_eq!(Dtype::from_name(name), Some(dtype));
        }
        assert_eq!(Dtype::from_name("F4"), None);
    }

    #[test]
    fn plain_floats_widen_exactly() {
        let mut out = Vec::new();
        assert!(extend_f32(Dtype::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut out));
        assert!(extend_f32(Dtype::F16, &[0x00, 0x3c], &mut out));
        assert!(extend_f32(Dtype::F32, &1.5f32.to_le_bytes(), &mut out));
        assert!(extend_f32(Dtype::F8E4M3, &[0x38], &mut out));
        assert!(!extend_f32(Dtype::I8, &[1], &mut out));
        assert_eq!(out, [1.0, -2.0, 1.0, 1.5, 1.0]);
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let mut out = Vec::new();
        extend_bf16(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut out);
        assert_eq!(out, [0x80, 0x3f, 0x82, 0x3f]);
    }
}
