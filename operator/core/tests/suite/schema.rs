//! Objects made from the schema of the CustomResourceDefinition: whatever the API server lets in is read, decided about without a panic, and
//! asks for no look in the past, which would be a hot loop. Five hundred objects; `PROPTEST_CASES=10000` for a long run.

use std::sync::Arc;

use llamero_api::{LlamaDeployment, crds};
use llamero_core::{decide, report};
use serde_json::{Map, Value, json};

use crate::build::{self, NOW};

/// Numbers from a seed (SplitMix64, Steele et al. 2014): a failure is made again from the seed that it prints.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let at = self.below(of.len() as u64) as usize;
        &of[at]
    }
}

/// A value that the schema allows. Rules in CEL are not looked at: what breaks one must not make a decision panic either.
fn value(schema: &Value, dice: &mut Dice) -> Value {
    if let Some(values) = schema["enum"].as_array() {
        return dice.pick(values).clone();
    }
    if schema["x-kubernetes-int-or-string"] == json!(true) {
        return json!(text(schema, dice));
    }
    match schema["type"].as_str() {
        Some("object") => object(schema, dice),
        Some("array") => {
            let least = schema["minItems"].as_u64().unwrap_or(0);
            let most = schema["maxItems"].as_u64().unwrap_or(3).min(least + 3);
            let count = least + dice.below(most - least + 1);
            (0..count).map(|_| value(&schema["items"], dice)).collect()
        }
        Some("string") => json!(text(schema, dice)),
        Some("boolean") => json!(dice.one_in(2)),
        Some("integer") => integer(schema, dice),
        Some("number") => json!(dice.below(1000) as f64 / 10.0),
        _ => json!({}),
    }
}

fn object(schema: &Value, dice: &mut Dice) -> Value {
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut map = Map::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if required.contains(&name.as_str()) || dice.one_in(3) {
            map.insert(name.clone(), value(property, dice));
        } else if let Some(default) = property.get("default") {
            map.insert(name.clone(), default.clone());
        }
    }
    if schema["additionalProperties"].is_object() {
        for _ in 0..dice.below(3) {
            let name = *dice.pick(&[
                "cpu",
                "memory",
                "nvidia.com/gpu",
                "ephemeral-storage",
                "example.com/x",
            ]);
            map.insert(name.to_owned(), value(&schema["additionalProperties"], dice));
        }
    }
    Value::Object(map)
}

fn integer(schema: &Value, dice: &mut Dice) -> Value {
    let (least, most) = match schema["format"].as_str() {
        Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    let bound = |name: &str| {
        schema[name]
            .as_i64()
            .or_else(|| schema[name].as_f64().map(|bound| bound as i64))
    };
    let least = bound("minimum").unwrap_or(least);
    let most = bound("maximum").unwrap_or(most);
    let small = least.max(0).saturating_add(dice.below(17) as i64).min(most);
    json!(*dice.pick(&[least, most, small, small, small]))
}

fn text(schema: &Value, dice: &mut Dice) -> String {
    let most = schema["maxLength"].as_u64().unwrap_or(40) as usize;
    let pattern = schema["pattern"].as_str().unwrap_or_default();
    let quantity = pattern.contains("[KMGTPE]i") || schema["x-kubernetes-int-or-string"] == json!(true);
    let words: &[&str] = if pattern.contains("(h|ms|m|s)") {
        &["0s", "1ms", "30s", "10m", "9999999h9999999h9999999h", "1h0m0s"]
    } else if quantity {
        &[
            "0",
            "1",
            "100m",
            "80Gi",
            "1e3",
            ".5",
            "999999999999999999E",
            "1n",
            "8",
            "640Ki",
        ]
    } else if pattern == "^/" {
        &["/", "/w", "/models/llama"]
    } else if pattern.starts_with("^[a-z0-9]") || pattern.starts_with("^[A-Za-z0-9]") {
        &["a", "weights-0", "x1"]
    } else if schema["format"] == json!("date-time") {
        &[
            "1970-01-01T00:00:00Z",
            "2026-11-27T00:00:00Z",
            "9999-12-30T00:00:00Z",
        ]
    } else {
        &[
            "",
            "a",
            "nvidia.com/gpu",
            "Exists",
            "In",
            "Gt",
            "llama/3.1",
            "\u{1f999}",
            "0123456789012345678901234567890123456789",
        ]
    };
    let fits: Vec<&str> = words.iter().copied().filter(|word| word.len() <= most).collect();
    assert!(!fits.is_empty(), "nothing fits {schema}");
    (*dice.pick(&fits)).to_owned()
}

/// Whether somebody added a pattern that this does not know.
fn known_patterns(schema: &Value) {
    const KNOWN: [&str; 5] = [
        "^([0-9]{1,7}(h|ms|m|s))+$",
        "^([0-9]{1,18}([.][0-9]{0,9})?|[.][0-9]{1,9})([KMGTPE]i|[numkMGTPE]|[eE][0-9]{1,2})?$",
        "^/",
        "^[A-Za-z0-9][-A-Za-z0-9._@]*$",
        "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    ];
    if let Some(pattern) = schema["pattern"].as_str() {
        assert!(KNOWN.contains(&pattern), "teach this test what matches {pattern}");
    }
    for (_, part) in schema.as_object().into_iter().flatten() {
        known_patterns(part);
    }
    for part in schema.as_array().into_iter().flatten() {
        known_patterns(part);
    }
}

fn schema() -> Value {
    let definitions = crds::definitions().unwrap();
    let deployment = definitions
        .iter()
        .find(|crd| crd["spec"]["names"]["kind"] == "LlamaDeployment")
        .unwrap();
    deployment["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn decided(seed: u64, schema: &Value) {
    let mut dice = Dice(seed);
    let spec = value(&schema["properties"]["spec"], &mut dice);
    let mut object = json!({
        "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "llama", "namespace": "ns", "uid": "uid-llama", "resourceVersion": "1", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec,
    });
    if dice.one_in(2) {
        object["status"] = value(&schema["properties"]["status"], &mut dice);
    }
    let read = serde_json::from_value::<LlamaDeployment>(object.clone());
    let read = read.unwrap_or_else(|error| panic!("seed {seed}: allowed and not read: {error}: {object}"));
    let mut deployment = build::deployment(|_| {});
    let checkpoint = deployment
        .object
        .status
        .as_ref()
        .and_then(|status| status.checkpoint.clone());
    deployment.object = Arc::new(read);
    if dice.one_in(2) {
        // Otherwise nothing is known of the checkpoint, and the pod that reads it is asked for.
        let object = Arc::make_mut(&mut deployment.object);
        let key = llamero_core::revision::inspect_key(&object.spec);
        object.status.get_or_insert_default().checkpoint =
            checkpoint.map(|known| llamero_api::deployment::CheckpointStatus { key, ..known });
    }
    for name in ["llama-0", "llama-1"].iter().take(dice.below(3) as usize) {
        deployment
            .groups
            .push(build::serving(&build::deployment(|_| {}), name, ["a", "b"]));
    }
    let observed = build::observed(deployment);
    let mut now = NOW;
    for _ in 0..3 {
        let plan = decide(&observed, now);
        let _ = report(&observed, &plan, now);
        assert!(
            plan.next_at.is_none_or(|at| at > now),
            "seed {seed}: looks again at {:?}, and it is {now}: {object}",
            plan.next_at
        );
        now = plan.next_at.unwrap_or(now + 1_000).min(NOW + 1_000_000_000_000);
    }
    let mut planner = build::planner(&observed);
    for deployment in observed.deployments {
        planner.set_deployment(deployment);
    }
    let plan = planner.pass(NOW);
    let _ = planner.report(&plan, NOW);
    assert!(
        planner.next_due().is_none_or(|at| at > NOW),
        "seed {seed}: {object}"
    );
}

#[test]
fn whatever_the_schema_allows_is_decided_about() {
    let schema = schema();
    known_patterns(&schema);
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(500);
    for seed in 0..cases {
        let caught = std::panic::catch_unwind(|| decided(seed, &schema));
        assert!(caught.is_ok(), "seed {seed}");
    }
}
