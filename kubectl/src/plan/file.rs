//! Deployments that are not applied, from a file.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
};
use llamero_api::LlamaDeployment;
use serde::Deserialize as _;
use serde_json::Value;

use crate::cluster::{Cluster, say};

/// Longest file that is read.
const MOST_BYTES: u64 = 4 << 20;
/// Who applies, for the API server's check.
const MANAGER: &str = "kubectl-llamero";

/// All LlamaDeployments of a YAML or JSON file; objects of other kinds are passed over.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let text = if path == Path::new("-") {
        limited(io::stdin().lock()).context("cannot read standard input")?
    } else {
        let file = fs::File::open(path);
        file.and_then(limited)
            .with_context(|| format!("cannot read {}", path.display()))?
    };
    objects(&text).with_context(|| format!("in {}", path.display()))
}

fn limited(from: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    let read = from.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MOST_BYTES {
        return Err(io::Error::other(format!("it is longer than {MOST_BYTES} bytes")));
    }
    Ok(text)
}

fn objects(text: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document).context("it is neither YAML nor JSON")?;
        let items = value.get("items").and_then(Value::as_array);
        for object in items.map_or(std::slice::from_ref(&value), Vec::as_slice) {
            if object.get("kind").is_some_and(|kind| kind == "LlamaDeployment") {
                found.push(object.clone());
            }
        }
    }
    ensure!(!found.is_empty(), "there is no LlamaDeployment");
    Ok(found)
}

/// The objects as the API server would keep them: checked, with its defaults, over what is applied already.
///
/// # Errors
/// The API server refuses them, in its words.
pub async fn checked(cluster: &Cluster, objects: Vec<Value>) -> Result<Vec<LlamaDeployment>> {
    let mut checked = Vec::new();
    for object in objects {
        let word = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let namespace = word("/metadata/namespace").unwrap_or_else(|| cluster.namespace.clone());
        let api: Api<LlamaDeployment> = Api::namespaced(cluster.client.clone(), &namespace);
        let Some(name) = word("/metadata/name") else {
            bail!("a LlamaDeployment has no metadata.name");
        };
        let mut params = PatchParams::apply(MANAGER).force().validation_strict();
        params.dry_run = true;
        match api.patch(&name, &params, &Patch::Apply(&object)).await {
            Ok(object) => checked.push(object),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                eprintln!("note: you may not apply {namespace}/{name}, so the API server has not checked it");
                checked.push(unchecked(object, &namespace)?);
            }
            Err(error) => return Err(say::refused(error, "apply", &format!("{namespace}/{name}"))),
        }
    }
    Ok(checked)
}

/// As it stands in the file.
fn unchecked(object: Value, namespace: &str) -> Result<LlamaDeployment> {
    let mut object: DynamicObject =
        serde_json::from_value(object).context("it is no object of Kubernetes")?;
    object.metadata.namespace = Some(namespace.to_owned());
    object.try_parse().context("it is no LlamaDeployment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deployments_are_taken_from_files_and_lists() {
        let text = "kind: ConfigMap\n---\nkind: LlamaDeployment\nmetadata: {name: a}\n---\nkind: List\nitems: [{kind: LlamaDeployment, metadata: {name: b}}]\n";
        let names: Vec<Value> = objects(text)
            .unwrap()
            .iter()
            .map(|o| o["metadata"]["name"].clone())
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert!(
            objects("kind: Pod")
                .unwrap_err()
                .to_string()
                .contains("no LlamaDeployment")
        );
        assert!(objects("{").is_err());
    }

    #[test]
    fn what_the_api_server_did_not_check_must_still_be_one() {
        let object = serde_json::json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": "a"},
            "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 2}}});
        let read = unchecked(object.clone(), "ns").unwrap();
        assert_eq!(
            (read.metadata.namespace.as_deref(), read.spec.replicas),
            (Some("ns"), 1)
        );
        let mut wrong = object;
        wrong["spec"]["parallelism"] = serde_json::json!("two");
        assert!(unchecked(wrong, "ns").is_err());
    }
}
