//! The JSON Schema Test Suite (draft 2020-12): a schema that compiles lets nothing through that it does not allow, as the suite and another
//! implementation say, and one that does not compile is refused by what is wrong with it.

use jsonschema::Draft;
use serde::Deserialize;
use serde_json::{Value, json};

use super::form::Form;
use super::testing::{accepts, grammars, walk};

/// Made by `tests/fixtures/schemas.py`.
const SUITE: &str = include_str!("../../../../tests/fixtures/json-schema-suite.json");
/// Keywords that are refused, wholly or in part.
const REFUSED: [&str; 25] = [
    "not",
    "if",
    "then",
    "else",
    "oneOf",
    "allOf",
    "contains",
    "minContains",
    "maxContains",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "uniqueItems",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "patternProperties",
    "multipleOf",
    "$ref",
    "$dynamicRef",
];
/// Keywords whose values are named where they are refused.
const QUOTED: [&str; 4] = ["format", "$ref", "$id", "pattern"];
/// Parts of the sentences in which schemas are refused for what they say as a whole.
const REASONS: [&str; 6] = [
    "Unsatisfiable",
    "nothing matches",
    "Resource 'http",
    "not disjoint",
    "too many digits",
    // Of the schema of schemas, to which some point.
    "$dynamicAnchor",
];

#[derive(Deserialize)]
struct Case {
    name: String,
    schema: Value,
    valid: Vec<Value>,
    invalid: Vec<Value>,
}

/// Whether a schema has a keyword, somewhere.
fn has(schema: &Value, keyword: &str) -> bool {
    match schema {
        Value::Object(object) => {
            object.contains_key(keyword) || object.values().any(|inner| has(inner, keyword))
        }
        Value::Array(list) => list.iter().any(|inner| has(inner, keyword)),
        _ => false,
    }
}

/// What a schema says of a keyword, everywhere.
fn values<'a>(schema: &'a Value, keyword: &str) -> Vec<&'a str> {
    match schema {
        Value::Object(object) => {
            let own = object.get(keyword).and_then(Value::as_str);
            let inner = object.values().flat_map(|inner| values(inner, keyword));
            own.into_iter().chain(inner).collect()
        }
        Value::Array(list) => list.iter().flat_map(|inner| values(inner, keyword)).collect(),
        _ => Vec::new(),
    }
}

/// Whether a refusal says what is wrong with a schema: a keyword that it has and that cannot be enforced, the format, reference or expression
/// that is at fault, or a reason that needs none of them.
fn names_it(error: &str, schema: &Value) -> bool {
    let words = error.split(|letter: char| !letter.is_alphanumeric() && letter != '$');
    let mut refused = words.filter(|word| REFUSED.contains(word));
    let mut quoted = QUOTED.iter().flat_map(|keyword| values(schema, keyword));
    refused.any(|word| has(schema, word))
        || quoted.any(|value| value.len() > 2 && error.contains(value))
        || REASONS.iter().any(|reason| error.contains(reason))
}

/// Whether a text holds a number that f64 does not, which validators do not count with.
fn is_vast(text: &str) -> bool {
    let digits = |part: &str| part.len() > 15 || part.len() > 2 && text.contains('e') | text.contains('E');
    text.split(|letter: char| !letter.is_ascii_digit()).any(digits)
}

#[test]
fn a_refusal_that_names_nothing_is_found() {
    let schema = json!({"type": "object", "properties": {"foo": {"not": {"type": "null"}}}});
    assert!(names_it(
        "it cannot be enforced: Unimplemented keys: [\"not\"]",
        &schema
    ));
    for vague in [
        "it cannot be enforced: foo",
        "it cannot be enforced: the type of an object",
        "it cannot be enforced: Unimplemented keys: [\"oneOf\"]",
        "it cannot be enforced: nothing is known",
    ] {
        assert!(!names_it(vague, &schema), "{vague}");
    }
}

#[test]
fn nothing_gets_through_that_a_schema_does_not_allow() {
    let suite: Vec<Case> = serde_json::from_str(SUITE).unwrap();
    let grammars = grammars();
    let (mut compiled, mut taken, mut valid, mut walked) = (0, 0, 0, 0);
    let mut unnamed = Vec::new();
    for Case {
        name,
        schema,
        valid: good,
        invalid: bad,
    } in &suite
    {
        let form = Form::Json(schema.to_string());
        if let Err(error) = grammars.compile(&form, &[]) {
            let error = error.to_string();
            if !names_it(&error, schema) {
                unnamed.push(format!("{name}: {error}: {schema}"));
            }
            continue;
        }
        compiled += 1;
        for instance in bad {
            assert!(
                !accepts(&grammars, &form, &instance.to_string()),
                "{name}: {instance}"
            );
        }
        taken += good
            .iter()
            .filter(|instance| accepts(&grammars, &form, &instance.to_string()))
            .count();
        valid += good.len();
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true);
        let validator = validator
            .build(schema)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        for text in (0..2)
            .filter_map(|seed| walk(&grammars, &form, seed))
            .filter(|text| !is_vast(text))
        {
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
            assert!(validator.is_valid(&value), "{name}: {text}");
            walked += 1;
        }
    }
    println!(
        "{compiled} of {} schemas compile, {taken} of {valid} valid instances are taken, {walked} walks ended",
        suite.len()
    );
    assert!(unnamed.is_empty(), "{}", unnamed.join("\n"));
    assert!(compiled >= 170, "{compiled} of {} schemas compile", suite.len());
    // Not taken are properties in another order than the schema's, 1.0 for an integer, and unusual addresses.
    assert!(
        taken * 10 >= valid * 9,
        "{taken} of {valid} valid instances are taken"
    );
    assert!(walked >= 100, "only {walked} walks ended");
}
