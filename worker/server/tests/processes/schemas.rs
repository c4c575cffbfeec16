//! Answers of the real model at temperature 1 by hundreds of forms: the schemas of the JSON Schema Test Suite, schemas as clients send them, regular
//! expressions and grammars. Whatever ends has its form, as another implementation says; answers are the same alone, among others, and on three ranks.

use futures::StreamExt as _;
use futures::stream::iter;
use jsonschema::{Draft, Validator};
use llamero_proto::v1::structure::Form;
use llamero_proto::v1::{CompletionRequest, FinishReason};
use llamero_settings::hash::mix;
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tonic::Code;

use crate::grammars::GRAMMARS;
use crate::harness::{Whole, Worker, complete, story, turn};
use crate::structured::formed;

/// Made by `tests/fixtures/schemas.py`.
const SUITE: &str = include_str!("../../../../tests/fixtures/json-schema-suite.json");
/// Schemas beside those of the suite.
const GENERATED: u64 = 150;
/// Of how many tokens the log-probabilities are compared at each position.
const LIKELIEST: u32 = 8;
/// Requests that run at once: batch mates come and go.
const AT_ONCE: usize = 24;
/// Regular expressions of the kinds that people send, within which `^` and `$` are not needed.
const REGEXES: [&str; 26] = [
    "[0-9]{3} (apples|pears)",
    "(yes|no|maybe)",
    r"\d{4}-\d{2}-\d{2}",
    r"[A-Z][a-z]{2,8}( [A-Z][a-z]{2,8})?",
    r"[a-z]+@[a-z]+\.(com|org|net)",
    r"#[0-9a-fA-F]{6}",
    r"(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?:25[0-5]|2[0-4]\d|1?\d?\d)){3}",
    r"[01]{8}",
    r"v\d{1,2}\.\d{1,2}\.\d{1,2}(-(alpha|beta|rc)\.\d)?",
    r"(?i)(hello|good morning)!?",
    r"[^aeiou\s]{3,6}",
    r"\w{2,10}",
    r"-?(0|[1-9]\d{0,5})(\.\d{1,3})?",
    r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day",
    r"[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8][+#]?",
    r"(a|b)*abb.{0,3}",
    r"é[à-ü]{1,4}",
    "[\u{4e00}-\u{9fff}]{1,4}",
    r"\$\d{1,3}(,\d{3}){0,2}\.\d{2}",
    r"([0-9A-F]{2}:){5}[0-9A-F]{2}",
    r"(I am (happy|sad)\. ){1,3}",
    r"[a-z]{1,10}(_[a-z]{1,10}){0,3}",
    r"(GET|POST) /[a-z]{1,8}(/[a-z]{1,8}){0,2} HTTP/1\.1",
    r"(un|re)?(do|make|think)(ing|s)?",
    r#""[^"\\]{1,12}""#,
    r"\s?[^\x00-\x1f]{1,10}\.",
];

#[derive(Deserialize)]
struct Entry {
    name: String,
    schema: Value,
}

/// A form and what an answer of it is.
struct Case {
    name: String,
    form: Form,
    check: Check,
    /// One of the suite, which has keywords that are refused. All others are served.
    of_suite: bool,
}

enum Check {
    Json(Validator),
    Text(Regex),
    Holds(fn(&str) -> bool),
    /// Another implementation is not asked: the schema points to the network, which ours refuses.
    Refused,
}

impl Case {
    fn json(name: String, schema: &Value, of_suite: bool) -> Self {
        let check = validator(schema).map_or(Check::Refused, Check::Json);
        let form = Form::JsonSchema(schema.to_string());
        Self {
            name,
            form,
            check,
            of_suite,
        }
    }

    fn holds(&self, text: &str) -> bool {
        match &self.check {
            Check::Holds(holds) => holds(text),
            Check::Text(regex) => regex.is_match(text),
            Check::Json(validator) => match serde_json::from_str(text) {
                Ok(value) => is_vast(text) || validator.is_valid(&value),
                Err(error) => is_vast(text) && error.to_string().contains("out of range"),
            },
            Check::Refused => false,
        }
    }
}

fn validator(schema: &Value) -> Option<Validator> {
    let options = jsonschema::options();
    let options = options
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true);
    options.build(schema).ok()
}

/// Whether there may be a number that f64 does not hold, with which validators do not count.
fn is_vast(text: &str) -> bool {
    let digits = |part: &str| part.len() > 15;
    let exponent = |pair: &[u8]| pair[0].is_ascii_digit() && matches!(pair[1], b'e' | b'E');
    text.split(|letter: char| !letter.is_ascii_digit()).any(digits)
        || text.as_bytes().windows(2).any(exponent)
}

fn cases() -> Vec<Case> {
    let suite: Vec<Entry> = serde_json::from_str(SUITE).unwrap();
    let suite = suite
        .into_iter()
        .map(|Entry { name, schema }| Case::json(name, &schema, true));
    let generated =
        (0..GENERATED).map(|seed| Case::json(format!("generated {seed}"), &generated(seed), false));
    let regexes = REGEXES.iter().map(|regex| Case {
        name: (*regex).to_owned(),
        form: Form::Regex((*regex).to_owned()),
        check: Check::Text(Regex::new(&format!("^(?:{regex})$")).unwrap()),
        of_suite: false,
    });
    let grammars = GRAMMARS.iter().map(|(grammar, holds)| Case {
        name: (*grammar).to_owned(),
        form: Form::Lark((*grammar).to_owned()),
        check: Check::Holds(*holds),
        of_suite: false,
    });
    suite.chain(generated).chain(regexes).chain(grammars).collect()
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound
    }
}

/// A record as clients describe them: nested objects and lists, of which some properties are required.
fn generated(seed: u64) -> Value {
    let mut random = Random(seed);
    let mut schema = object(&mut random, 2);
    let places = json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome", "Lima"]}, "inner": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]}},
        "required": ["city"], "additionalProperties": false});
    schema["$defs"] = json!({"place": places});
    schema
}

fn object(random: &mut Random, depth: u64) -> Value {
    const NAMES: [&str; 8] = [
        "name",
        "age",
        "tags",
        "address",
        "is_member",
        "e-mail",
        "größe",
        "a \"b\"",
    ];
    let count = 1 + random.below(4) as usize;
    let first = random.below(8) as usize;
    let names = (0..count).map(|at| NAMES[(first + at) % NAMES.len()]);
    let properties: Map<String, Value> = names
        .map(|name| (name.to_owned(), value(random, depth)))
        .collect();
    let required: Vec<&String> = properties.keys().filter(|_| random.below(3) > 0).collect();
    json!({"type": "object", "properties": &properties, "required": required, "additionalProperties": false})
}

fn value(random: &mut Random, depth: u64) -> Value {
    let low = random.below(50);
    let high = low + 5 + random.below(100);
    match random.below(if depth > 0 { 13 } else { 10 }) {
        0 => json!({"type": "string", "maxLength": 4 + random.below(12)}),
        1 => {
            json!({"type": "string", "minLength": 2, "maxLength": 3 + random.below(9), "description": "a word"})
        }
        2 => {
            json!({"type": "string", "pattern": (["^[A-Z]{2}[0-9]{3}$", "^(red|green)-[a-z]{1,6}$", "^\\w+$"][random.below(3) as usize]), "maxLength": 20})
        }
        3 => {
            json!({"type": "string", "format": (["date", "time", "date-time", "ipv4", "uuid", "email", "hostname"][random.below(7) as usize])})
        }
        4 => json!({"type": "integer", "minimum": low, "maximum": high}),
        5 => json!({"type": "integer", "minimum": low, "maximum": high, "multipleOf": 2 + random.below(4)}),
        6 => json!({"type": "number", "exclusiveMinimum": 0, "maximum": high}),
        7 => json!({"type": (["boolean", "null"][random.below(2) as usize])}),
        8 => json!({"enum": ["small", "large", 7, null, [1, "x"]]}),
        9 => json!({"anyOf": [{"const": "none"}, {"type": "integer", "minimum": 0, "maximum": high}]}),
        10 => {
            json!({"type": "array", "items": value(random, depth - 1), "minItems": random.below(2), "maxItems": 1 + random.below(3)})
        }
        11 => json!({"$ref": "#/$defs/place"}),
        _ => object(random, depth - 1),
    }
}

/// The log-probabilities tell of the masks too: the likeliest tokens are among those that a form allows.
fn request(case: &Case) -> CompletionRequest {
    CompletionRequest {
        logprobs: Some(LIKELIEST),
        ..formed(case.form.clone(), 1)
    }
}

/// The answers, none for what is refused, beside one that has no form.
async fn answers(worker: &Worker, cases: &[Case]) -> Vec<Option<Whole>> {
    let asked = iter(cases).map(|case| async move {
        let answer = complete(worker, request(case)).await;
        if let Err(status) = &answer {
            assert_eq!(status.code(), Code::InvalidArgument, "{}: {status}", case.name);
            let parameter = status.metadata().get("parameter");
            assert!(
                parameter.is_some_and(|name| name == "response_format"),
                "{}: {status}",
                case.name
            );
        }
        answer.ok()
    });
    let (answers, free) = tokio::join!(asked.buffered(AT_ONCE).collect(), complete(worker, story(40)));
    assert_eq!(free.unwrap().token_ids.len(), 40);
    answers
}

/// Hold the answers against their forms: how many there are, of how many schemas, and how many of them ended by themselves.
fn check(cases: &[Case], answers: &[Option<Whole>]) -> (usize, usize, usize) {
    let (mut formed, mut schemas, mut ended) = (0, 0, 0);
    for (case, answer) in cases.iter().zip(answers) {
        let Some(answer) = answer else {
            assert!(case.of_suite, "{} is refused", case.name);
            continue;
        };
        formed += 1;
        schemas += usize::from(matches!(case.form, Form::JsonSchema(_)));
        let listed = answer.logprobs.iter().map(|token| token.token_id);
        assert!(listed.eq(answer.token_ids.iter().copied()), "{}", case.name);
        if answer.reason == Some(FinishReason::Stop) {
            ended += 1;
            assert!(case.holds(&answer.text), "{}: {:?}", case.name, answer.text);
        }
    }
    (formed, schemas, ended)
}

async fn every_form(worker: &Worker, cases: &[Case], extent: Extent) -> Vec<Option<Whole>> {
    let whole = answers(worker, cases).await;
    let (formed, schemas, ended) = check(cases, &whole);
    println!(
        "{} forms: {formed} were compiled, {schemas} of them schemas, {ended} answers ended",
        cases.len()
    );
    assert!(schemas >= extent.schemas, "only {schemas} schemas were compiled");
    assert!(ended * 10 >= formed * 6, "only {ended} of {formed} answers ended");
    for (case, among_others) in cases
        .iter()
        .zip(&whole)
        .filter(|(_, answer)| answer.is_some())
        .take(extent.alone)
    {
        assert_eq!(
            &complete(worker, request(case)).await.ok(),
            among_others,
            "{}",
            case.name
        );
    }
    whole
}

/// How many answers are compared with those without batch mates, and how many schemas compile at least.
#[derive(Clone, Copy)]
struct Extent {
    alone: usize,
    schemas: usize,
}

async fn on_one_and_three_ranks(cases: &[Case], extent: Extent) {
    let _turn = turn().await;
    let worker = Worker::alone(1, &[]).await;
    let whole = every_form(&worker, cases, extent).await;
    drop(worker);
    let worker = Worker::alone(3, &[]).await;
    assert_eq!(
        answers(&worker, cases).await,
        whole,
        "three ranks answer as one does"
    );
}

#[tokio::test]
async fn every_answer_that_ends_has_its_form() {
    let cases: Vec<Case> = cases().into_iter().step_by(11).collect();
    let extent = Extent {
        alone: 6,
        schemas: 24,
    };
    on_one_and_three_ranks(&cases, extent).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn every_answer_that_ends_has_its_form_with_all_forms() {
    let cases = cases();
    let extent = Extent {
        alone: 100,
        schemas: 300,
    };
    on_one_and_three_ranks(&cases, extent).await;
}
