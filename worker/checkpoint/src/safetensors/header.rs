//! The JSON header of a safetensors file, checked so strictly that whatever passes can be read without surprises.
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
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::dtype::Dtype;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Byte range relative to the end of the header.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// Bytes of the tensor.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.bytes() / self.dtype.size()
    }
}

/// A checked header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// The free-form `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// The format's limit for the header, in bytes.
    pub const MAX_BYTES: u64 = 100_000_000;

    /// Parse and check the JSON of a header. The error is a phrase for a person.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let entries: Entries =
            serde_json::from_slice(json).map_err(|error| format!("it is not valid JSON ({error})"))?;
        let mut header = Self::default();
        for (name, value) in entries.0 {
            if name == "__metadata__" {
                header.metadata =
                    serde_json::from_value(value).map_err(|error| format!("__metadata__: {error}"))?;
                continue;
            }
            let info = check_entry(&name, value)?;
            if header.tensors.insert(name.clone(), info).is_some() {
                return Err(format!("tensor {name} is listed twice"));
            }
        }
        header.check_offsets()?;
        Ok(header)
    }

    /// Bytes of data after the header.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.tensors
            .values()
            .map(|info| info.range.end)
            .max()
            .unwrap_or(0)
    }

    /// The format allows no hole and no overlap.
    fn check_offsets(&self) -> Result<(), String> {
        let mut by_offset: Vec<_> = self.tensors.iter().collect();
        by_offset.sort_by_key(|(_, info)| (info.range.start, info.range.end));
        let mut end = 0;
        for (name, info) in by_offset {
            if info.range.start < end {
                return Err(format!(
                    "tensor {name} starts at byte {}, inside the tensor before it, which ends at {end}",
                    info.range.start
                ));
            }
            if info.range.start > end {
                return Err(format!("bytes {end}..{} belong to no tensor", info.range.start));
            }
            end = info.range.end;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn check_entry(name: &str, value: serde_json::Value) -> Result<TensorInfo, String> {
    let raw: RawEntry = serde_json::from_value(value).map_err(|error| format!("tensor {name}: {error}"))?;
    let dtype = Dtype::from_name(&raw.dtype).ok_or_else(|| {
        format!(
            "tensor {name} has the element type {}, which is not known",
            raw.dtype
        )
    })?;
    let [start, end] = raw.data_offsets;
    if end < start {
        return Err(format!(
            "tensor {name} ends at byte {end}, before it starts at {start}"
        ));
    }
    let needed = raw
        .shape
        .iter()
        .try_fold(dtype.size(), |product, dim| product.checked_mul(*dim))
        .ok_or_else(|| format!("tensor {name} has an impossible shape {:?}", raw.shape))?;
    if needed != end - start {
        return Err(format!(
            "tensor {name} ({dtype}, shape {:?}) needs {needed} bytes but its offsets span {}",
            raw.shape,
            end - start
        ));
    }
    Ok(TensorInfo {
        dtype,
        shape: raw.shape,
        range: start..end,
    })
}

/// The entries in file order, so that a name that occurs twice is seen.
struct Entries(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        Header::parse(json.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_good_header() {
        let json = br#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F32","shape":[],"data_offsets":[6,10]},
            "a":{"dtype":"BF16","shape":[3,1],"data_offsets":[0,6]},
            "empty":{"dtype":"BF16","shape":[0,4],"data_offsets":[6,6]}}  "#;
        let header = Header::parse(json).unwrap();
        assert_eq!(header.data_bytes(), 10);
        assert_eq!(header.metadata["format"], "pt");
        assert_eq!(
            header.tensors["a"],
            TensorInfo {
                dtype: Dtype::BF16,
                shape: vec![3, 1],
                range: 0..6
            }
        );
        assert_eq!(
            (header.tensors["b"].elements(), header.tensors["empty"].elements()),
            (1, 0)
        );
    }

    #[test]
    fn damage_is_named() {
        assert!(refusal("{").contains("not valid JSON"));
        assert!(refusal("[]").contains("not valid JSON"));
        let entry =
            |begin: u64, end: u64| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":[{begin},{end}]}}"#);
        assert!(
            refusal(&format!(r#"{{"a":{},"a":{}}}"#, entry(0, 4), entry(4, 8))).contains("a is listed twice")
        );
        assert!(
            refusal(&format!(r#"{{"a":{},"b":{}}}"#, entry(0, 4), entry(3, 7)))
                .contains("inside the tensor before")
        );
        assert!(
            refusal(&format!(r#"{{"a":{},"b":{}}}"#, entry(0, 4), entry(5, 9)))
                .contains("bytes 4..5 belong to no")
        );
        assert!(refusal(&format!(r#"{{"a":{}}}"#, entry(4, 0))).contains("before it starts"));
        assert!(
            refusal(&format!(r#"{{"a":{}}}"#, entry(0, 5))).contains("needs 4 bytes but its offsets span 5")
        );
        assert!(
            refusal(r#"{"a":{"dtype":"F3","shape":[4],"data_offsets":[0,4]}}"#)
                .contains("F3, which is not known")
        );
        assert!(refusal(r#"{"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}"#).contains("tensor a"));
        assert!(refusal(r#"{"a":{"dtype":"U8","shape":[4]}}"#).contains("data_offsets"));
        let huge = r#"{"a":{"dtype":"F64","shape":[9223372036854775807,4],"data_offsets":[0,4]}}"#;
        assert!(refusal(huge).contains("impossible shape"));
    }
}
