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

/// Keywords whose value is a schema, a list of schemas, or either.
const SCHEMAS: [&str; 7] = [
    "items",
    "additionalItems",
    "prefixItems",
    "additionalProperties",
    "anyOf",
    "allOf",
    "oneOf",
];
/// Keywords whose value is an object of schemas.
const NAMED_SCHEMAS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// Put patterns beside formats, wherever a schema stands.
pub(super) fn make_exact(schema: &mut Map<String, Value>) {
    for keyword in SCHEMAS {
        match schema.get_mut(keyword) {
            Some(Value::Object(inner)) => make_exact(inner),
            Some(Value::Array(list)) => list
                .iter_mut()
                .filter_map(Value::as_object_mut)
                .for_each(make_exact),
            _ => {}
        }
    }
    for keyword in NAMED_SCHEMAS {
        if let Some(Value::Object(named)) = schema.get_mut(keyword) {
            named
                .values_mut()
                .filter_map(Value::as_object_mut)
                .for_each(make_exact);
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

fn exact(format: &str) -> Option<Value> {
    Some(match format {
        "date" => json!({"pattern": format!("^{DATE}$")}),
        "time" => json!({"pattern": format!("^{TIME}$")}),
        "date-time" => json!({"pattern": format!("^{DATE}[Tt ]{TIME}$")}),
        "hostname" => json!({"pattern": format!("^{HOSTNAME}$"), "maxLength": 253}),
        _ => return None,
    })
}
