//! Label selectors (<https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>).

use anyhow::{Result, bail};
use serde_json::Value;

/// Whether a selector means an object with these labels. An empty selector means all.
pub(super) fn matches(selector: &Value, labels: &Value) -> Result<bool> {
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        if labels.get(key) != Some(value) {
            return Ok(false);
        }
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let found = expression["key"].as_str().and_then(|key| labels.get(key));
        let values = expression["values"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let listed = found.is_some_and(|found| values.contains(found));
        let holds = match expression["operator"].as_str() {
            Some("In") => listed,
            Some("NotIn") => !listed,
            Some("Exists") => found.is_some(),
            Some("DoesNotExist") => found.is_none(),
            other => bail!("a selector has the operator {other:?}"),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_mean_what_they_say() {
        let labels = json!({"app": "a", "tier": "t"});
        let expression = |operator: &str, key: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (selector, meant) in [
            (json!({}), true),
            (json!({"matchLabels": {"app": "a"}}), true),
            (json!({"matchLabels": {"app": "a", "tier": "x"}}), false),
            (expression("In", "app", json!(["a", "b"])), true),
            (expression("NotIn", "app", json!(["a"])), false),
            (expression("NotIn", "other", json!(["a"])), true),
            (expression("Exists", "tier", json!(null)), true),
            (expression("DoesNotExist", "tier", json!(null)), false),
        ] {
            assert_eq!(matches(&selector, &labels).unwrap(), meant, "{selector}");
        }
        assert!(matches(&expression("Gt", "app", json!([])), &labels).is_err());
    }
}
