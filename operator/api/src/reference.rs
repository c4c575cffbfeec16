//! The resources as a page to read, made from their schemas.
#![allow(
    clippy::indexing_slicing,
    reason = "what is read is our own, when pages are made"
)]

use std::fmt::Write as _;

use serde_json::Value;

use crate::crds;

/// Where the page lies in the repository.
pub const FILE: &str = "docs/resources.md";

/// Fields whose inside Kubernetes documents, by their path in the specification.
const KUBERNETES: [&str; 6] = [
    "worker.affinity",
    "worker.env",
    "worker.imagePullSecrets",
    "worker.inspectResources",
    "worker.resources",
    "worker.tolerations",
];

/// The page, in Markdown.
///
/// # Errors
/// When a definition cannot be written as JSON, which would be a mistake in this crate.
pub fn page() -> Result<String, serde_json::Error> {
    let mut page = String::from(
        "# Resources\n\n<!-- Generated from the types in operator/api by `make generate`; do not edit. -->\n\n\
         `kubectl explain llamadeployment.spec --recursive` shows the same on a cluster.\n",
    );
    for crd in crds::definitions()? {
        let version = &crd["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        let (kind, group) = (text(&crd["spec"]["names"]["kind"]), text(&crd["spec"]["group"]));
        let _ = write!(
            page,
            "\n## {kind}\n\n`apiVersion: {group}/{}`. {}\n",
            text(&version["name"]),
            text(&schema["description"])
        );
        for part in ["spec", "status"] {
            let mut section = Section::default();
            section.fields(&schema["properties"][part], "");
            let _ = write!(page, "\n### {kind}.{part}\n\n{HEAD}{}", section.rows);
            if part == "spec" {
                section.rules(schema);
                section.rules(&schema["properties"][part]);
                let _ = write!(
                    page,
                    "\nThe API server refuses an object unless:\n\n{}",
                    section.rules
                );
            }
        }
    }
    Ok(page)
}

const HEAD: &str = "| field | type | what it is |\n|---|---|---|\n";

#[derive(Default)]
struct Section {
    rows: String,
    rules: String,
}

impl Section {
    fn fields(&mut self, schema: &Value, path: &str) {
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let needed = required.iter().any(|one| one == name);
            let path = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            let foreign = KUBERNETES.iter().any(|known| path.ends_with(known));
            let _ = writeln!(
                self.rows,
                "| `{path}` | {} | {} |",
                kind(field),
                cell(field, needed)
            );
            self.rules(field);
            if !foreign {
                self.fields(field, &path);
                self.fields(&field["items"], &format!("{path}[]"));
            }
        }
    }

    fn rules(&mut self, schema: &Value) {
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let _ = writeln!(self.rules, "- {}", text(&rule["message"]));
        }
    }
}

fn kind(field: &Value) -> String {
    if field["x-kubernetes-int-or-string"] == true {
        return "quantity".to_owned();
    }
    match text(&field["type"]) {
        "array" => format!("list of {}", kind(&field["items"])),
        "object" if field["additionalProperties"].is_object() => "map".to_owned(),
        known => known.to_owned(),
    }
}

/// Description, then what is allowed, the default, and whether it must be given.
fn cell(field: &Value, needed: bool) -> String {
    let mut cell = text(&field["description"]).replace('\n', " ").replace('|', "\\|");
    let mut add = |part: String| {
        if !cell.is_empty() && !cell.ends_with('.') {
            cell.push('.');
        }
        cell.push_str(if cell.is_empty() { "" } else { " " });
        cell.push_str(&part);
    };
    if let Some(choices) = field["enum"].as_array() {
        let choices: Vec<String> = choices.iter().map(|one| format!("`{}`", text(one))).collect();
        add(format!("One of {}.", choices.join(", ")));
    }
    match (bound(field, "minimum"), bound(field, "maximum")) {
        (Some(low), Some(high)) => add(format!("From {low} to {high}.")),
        (Some(low), None) => add(format!("At least {low}.")),
        (None, Some(high)) => add(format!("At most {high}.")),
        (None, None) => {}
    }
    match &field["default"] {
        Value::Null | Value::Object(_) | Value::Array(_) => {}
        Value::String(default) if default.is_empty() => {}
        Value::String(default) => add(format!("Default `{default}`.")),
        default => add(format!("Default `{default}`.")),
    }
    if needed {
        add("**Required.**".to_owned());
    }
    cell
}

fn bound(field: &Value, name: &str) -> Option<i64> {
    // Schemas hold bounds as floats; ours are whole.
    #[allow(clippy::cast_possible_truncation, reason = "bounds are small whole numbers")]
    field.get(name).and_then(Value::as_f64).map(|bound| bound as i64)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    #[test]
    fn the_committed_page_is_up_to_date() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let committed = std::fs::read_to_string(root.join(FILE)).unwrap();
        assert!(
            committed == page().unwrap(),
            "{FILE} differs from the types: run llamero-crdgen"
        );
    }

    #[test]
    fn every_field_of_a_specification_is_described() {
        for crd in crds::definitions().unwrap() {
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            described(schema["properties"].as_object().unwrap(), "spec");
        }
    }

    fn described(fields: &Map<String, Value>, path: &str) {
        for (name, field) in fields {
            let path = format!("{path}.{name}");
            assert!(
                !text(&field["description"]).is_empty(),
                "{path} has no description"
            );
            if let Some(inner) = field["properties"].as_object()
                && !KUBERNETES.iter().any(|known| path.ends_with(known))
            {
                described(inner, &path);
            }
        }
    }
}
