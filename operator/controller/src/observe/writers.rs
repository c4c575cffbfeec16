//! Who wrote a field last, from `metadata.managedFields`.

use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, labels::FIELD_MANAGER};
use serde_json::Value;

/// Who wrote `spec.replicas` last. Nobody, while the API server's default stands there. A field that we own has the value that we
/// gave it, whoever else gave it the same.
#[must_use]
pub fn of_replicas(object: &LlamaDeployment) -> Option<String> {
    let owners = || {
        object
            .managed_fields()
            .iter()
            .filter(|entry| owns_replicas(entry))
    };
    let name = |entry: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry| {
        entry.manager.clone().unwrap_or_default()
    };
    if owners().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER)) {
        return Some(FIELD_MANAGER.to_owned());
    }
    owners()
        .max_by_key(|entry| entry.time.as_ref().map(|time| time.0))
        .map(name)
}

fn owns_replicas(entry: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry) -> bool {
    let fields: Option<&Value> = entry.fields_v1.as_ref().map(|fields| &fields.0);
    fields.is_some_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
}

/// Keeps of `metadata.managedFields` what [`of_replicas`] asks for.
pub fn keep_writers_of_replicas(object: &mut LlamaDeployment) {
    if let Some(entries) = &mut object.metadata.managed_fields {
        entries.retain(owns_replicas);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(entries: Value) -> LlamaDeployment {
        serde_json::from_value(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
            "metadata": {"name": "d", "managedFields": entries},
            "spec": {"model": {"source": {}}, "parallelism": {"tensor": 1}},
        }))
        .unwrap()
    }

    fn entry(manager: &str, time: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": "Update", "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn the_last_writer_counts_and_we_before_all() {
        let replicas = || json!({"f:spec": {"f:replicas": {}}});
        let other = json!({"f:spec": {"f:model": {}}});
        assert_eq!(
            of_replicas(&object(json!([entry("kubectl", "2026-01-01T00:00:00Z", other)]))),
            None
        );
        let two = json!([
            entry("helm", "2026-01-01T00:00:00Z", replicas()),
            entry("kubectl-edit", "2026-01-02T00:00:00Z", replicas()),
        ]);
        assert_eq!(of_replicas(&object(two)).as_deref(), Some("kubectl-edit"));
        let shared = json!([
            entry("llamero-operator", "2026-01-01T00:00:00Z", replicas()),
            entry("argocd", "2026-01-02T00:00:00Z", replicas()),
        ]);
        assert_eq!(of_replicas(&object(shared)).as_deref(), Some("llamero-operator"));
    }
}
