//! Formats of strings that the compiler knows only roughly, made exact: beside such a `format` stands a pattern that excludes what it lets through
//! wrongly. A few strings that the format would allow are given up with them.

use serde_json::{Map, Value, json};

/// Days that there are, also in February (RFC 3339, appendix C).
const DATE: &str = concat!(
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
);
/// No leap second: whether there is one depends on the offset that follows.
const TIME: &str = "[0-9]{2}:[0-9]{2}:[0-5].*";
/// No hyphens side by side: behind two of them stands Punycode, few of whose strings are names.
const HOSTNAME: &str = r"[A-Za-z0-9]+(?:[-.][A-Za-z0-9]+)*";

/// Keywords whose value is no schema, whatever it looks like.
const VALUES: [&str; 4] = ["const", "enum", "default", "examples"];
/// Keywords whose value is an object of schemas, by names that may be those of keywords.
const NAMED_SCHEMAS: [&str; 5] = [
    "properties",
    "patternProperties",
    "dependentSchemas",
    "$defs",
    "definitions",
];

/// Put patterns beside formats, wherever a schema may stand: references lead to any place, also behind keywords that nobody knows.
pub(super) fn make_exact(schema: &mut Map<String, Value>) {
    for (keyword, value) in schema.iter_mut() {
        match value {
            _ if VALUES.contains(&keyword.as_str()) => {}
            Value::Object(named) if NAMED_SCHEMAS.contains(&keyword.as_str()) => {
                each(named.values_mut());
            }
            value => each(std::iter::once(value)),
        }
    }
    let Some(exact) = schema.get("format").and_then(Value::as_str).and_then(exact) else {
        return;
    };
    let all = schema.entry("allOf").or_insert_with(|| json!([]));
    // What is no list the compiler refuses.
    if let Value::Array(all) = all {
        all.push(exact);
    }
}

fn each<'a>(values: impl Iterator<Item = &'a mut Value>) {
    for value in values {
        match value {
            Value::Object(schema) => make_exact(schema),
            Value::Array(list) => each(list.iter_mut()),
            _ => {}
        }
    }
}

fn exact(format: &str) -> Option<Value> {
    Some(match format {
        "date" => json!({"pattern": format!("^{DATE}$")}),
        "time" => json!({"pattern": format!("^{TIME}$")}),
        "date-time" => json!({"pattern": format!("^{DATE}[Tt ]{TIME}$")}),
        "hostname" => json!({"pattern": format!("^{HOSTNAME}$"), "maxLength": 253}),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_beside_formats_wherever_a_reference_may_lead_and_in_no_value() {
        let mut schema = json!({
            "$ref": "#/components/schemas/day",
            "components": {"schemas": {"day": {"format": "date"}}},
            "definitions": {"default": {"format": "time"}},
            "properties": {"enum": {"items": [{"format": "hostname"}]}, "format": {"type": "string"}},
            "default": {"format": "date"},
            "enum": [{"format": "date"}],
        });
        make_exact(schema.as_object_mut().unwrap());
        for place in [
            "/components/schemas/day",
            "/definitions/default",
            "/properties/enum/items/0",
        ] {
            assert!(schema.pointer(place).unwrap().get("allOf").is_some(), "{place}");
        }
        for place in ["", "/default", "/enum/0", "/properties", "/properties/format"] {
            assert!(schema.pointer(place).unwrap().get("allOf").is_none(), "{place}");
        }
    }
}
