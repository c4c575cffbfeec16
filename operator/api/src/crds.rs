//! The CustomResourceDefinitions as files.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::{LlamaDeployment, LlamaGroup, labels::SCHEMA_VERSION};

/// The definitions as JSON values, ready for the API server.
///
/// # Errors
/// When a definition cannot be written as JSON, which would be a mistake in this crate.
#[allow(clippy::indexing_slicing, reason = "a definition is an object with metadata")]
pub fn definitions() -> Result<Vec<Value>, serde_json::Error> {
    [LlamaDeployment::crd(), LlamaGroup::crd()]
        .into_iter()
        .map(|crd| {
            let mut value = serde_json::to_value(crd)?;
            refuse_null(&mut value);
            value["metadata"]["annotations"] = json!({ SCHEMA_VERSION: env!("CARGO_PKG_VERSION") });
            value.sort_all_objects();
            Ok(value)
        })
        .collect()
}

/// File name and YAML text of every definition.
///
/// # Errors
/// When a definition cannot be written, which would be a mistake in this crate.
pub fn files() -> Result<Vec<(String, String)>, CrdError> {
    definitions()?
        .into_iter()
        .map(|crd| {
            let plural = crd
                .pointer("/spec/names/plural")
                .and_then(Value::as_str)
                .unwrap_or_default();
            Ok((
                format!("{plural}.yaml"),
                format!("{HEADER}{}", serde_yaml_ng::to_string(&crd)?),
            ))
        })
        .collect()
}

/// A definition cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// As JSON.
    #[error("cannot write a definition as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("cannot write a definition as YAML: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
}

const HEADER: &str =
    "# Written by `cargo run -p llamero-api --bin llamero-crdgen`; change the types instead.\n";

/// An optional field is absent or has a value. The derive makes it nullable too, and then `has(self.field)` would hold for null.
fn refuse_null(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            map.values_mut().for_each(refuse_null);
        }
        Value::Array(items) => items.iter_mut().for_each(refuse_null),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_structural() {
        for crd in definitions().unwrap() {
            let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
            let text = schema.to_string();
            for forbidden in ["\"$ref\"", "\"oneOf\"", "\"anyOf\"", "\"nullable\"", "\"uint"] {
                assert!(
                    !text.contains(forbidden),
                    "{forbidden} in {}",
                    crd["metadata"]["name"]
                );
            }
            typed(schema, "");
        }
    }

    /// Every schema has a type, or says that it takes anything or an int-or-string.
    fn typed(schema: &Value, path: &str) {
        let known = schema.get("type").is_some() || schema.get("x-kubernetes-int-or-string").is_some();
        assert!(known, "no type at {path}");
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            typed(property, &format!("{path}.{name}"));
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                typed(&schema[inner], &format!("{path}.{inner}"));
            }
        }
    }

    #[test]
    fn the_committed_files_are_up_to_date() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (name, text) in files().unwrap() {
            for folder in ["crds", "charts/llamero/crds"] {
                let committed = std::fs::read_to_string(root.join(folder).join(&name)).unwrap();
                assert!(
                    committed == text,
                    "{folder}/{name} differs from the types: run llamero-crdgen"
                );
            }
        }
    }
}
