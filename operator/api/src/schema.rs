//! Schemas that the derive cannot know.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A quantity the way the API server takes it: `4`, `"4"` or `"80Gi"`.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "pattern": "^([0-9]{1,18}([.][0-9]{0,9})?|[.][0-9]{1,9})([KMGTPE]i|[numkMGTPE]|[eE][0-9]{1,2})?$",
        "x-kubernetes-int-or-string": true
    })
}

/// Quantities by resource name.
pub(crate) fn quantities(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "additionalProperties": quantity(generator)})
}

/// Requests and limits of the worker container.
pub(crate) fn resources(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {"requests": quantities(generator), "limits": quantities(generator)}
    })
}

/// Affinity rules as in a pod, without their long descriptions. The whole schema stands here so that an object which the API server
/// accepts can always be read.
pub(crate) fn affinity(generator: &mut SchemaGenerator) -> Schema {
    use k8s_openapi::api::core::v1::Affinity;
    let mut value = generator.subschema_for::<Affinity>().to_value();
    if let Some(definition) = value
        .pointer("/$ref")
        .and_then(|r| r.as_str())
        .and_then(|r| r.rsplit('/').next())
        .map(str::to_owned)
    {
        value = generator.definitions().get(&definition).cloned().unwrap_or(value);
    }
    strip(&mut value);
    Schema::try_from(value).unwrap_or_default()
}

fn strip(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|key, value| key != "description" || !value.is_string());
            map.values_mut().for_each(strip);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
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
