//! The JSON Schema Test Suite (draft 2020-12): a schema that compiles lets nothing through that it does not allow, as the suite and another
//! implementation say, and one that does not compile is refused by what is wrong with it.

use jsonschema::Draft;
use serde::Deserialize;
use serde_json::Value;

use super::form::Form;
use super::testing::{accepts, grammars, walk};

/// Made by `tests/fixtures/schemas.py`.
const SUITE: &str = include_str!("../../../../tests/fixtures/json-schema-suite.json");
/// Parts of the sentences in which schemas are refused, beside the names of their own keywords.
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

/// All words of a schema, those of its keywords and those that they name.
fn words(schema: &Value) -> Vec<&str> {
    match schema {
        Value::Object(object) => {
            let inner = object.values().flat_map(words);
            object.keys().map(String::as_str).chain(inner).collect()
        }
        Value::Array(list) => list.iter().flat_map(words).collect(),
        Value::String(word) => vec![word],
        _ => Vec::new(),
    }
}

/// Whether a text holds a number that f64 does not, which validators do not count with.
fn is_vast(text: &str) -> bool {
    let digits = |part: &str| part.len() > 15 || part.len() > 2 && text.contains('e') | text.contains('E');
    text.split(|letter: char| !letter.is_ascii_digit()).any(digits)
}

#[test]
fn nothing_gets_through_that_a_schema_does_not_allow() {
    let suite: Vec<Case> = serde_json::from_str(SUITE).unwrap();
    let grammars = grammars();
    let (mut compiled, mut taken, mut valid, mut walked) = (0, 0, 0, 0);
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
            let mut parts = words(schema).into_iter().chain(REASONS);
            assert!(parts.any(|part| error.contains(part)), "{name}: {error}");
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
    assert!(compiled >= 170, "{compiled} of {} schemas compile", suite.len());
    // Not taken are properties in another order than the schema's, 1.0 for an integer, and unusual addresses.
    assert!(
        taken * 10 >= valid * 9,
        "{taken} of {valid} valid instances are taken"
    );
    assert!(walked >= 100, "only {walked} walks ended");
}
