//! Schemas that the derive cannot know.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A quantity the way the API server takes it: `4`, `"4"` or `"80Gi"`.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "pattern": "^([0-9]{1,18}([.][0-9]{0,9})?|[.][0-9]{1,9})([KMGTPE]i|[numkMGTPE]|[eE][0-9]{1,2})?$",
        "x-kubernetes-int-or-string": true
    })
}

/// Requests and limits of the worker container.
pub(crate) fn resources(generator: &mut SchemaGenerator) -> Schema {
    let map = |generator: &mut SchemaGenerator| json_schema!({"type": "object", "additionalProperties": quantity(generator)});
    json_schema!({
        "type": "object",
        "properties": {"requests": map(generator), "limits": map(generator)}
    })
}

/// Affinity rules; their long schema is left to the API server's own check of the pods.
pub(crate) fn free_form(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Conditions, merged by type.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    let item = <Condition as schemars::JsonSchema>::json_schema(generator);
    json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"]
    })
}
