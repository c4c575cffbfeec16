//! Changing an input.

use serde_json::{Map, Value, json};

use crate::random::Random;

/// Longest input: what grows faster than it shows with less.
const LONGEST: usize = 64 << 10;
/// Numbers that code forgets.
const NUMBERS: [u64; 13] = [
    0,
    1,
    7,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    i64::MIN as u64,
    u64::MAX - 7,
    u64::MAX,
];

/// What an input looks like when it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Bytes with lengths and numbers in them.
    Bytes,
    /// JSON.
    Json,
    /// A language.
    Text,
}

/// A changed `input`. `other` is another one, `words` are words of its language.
pub(crate) fn mutate(
    input: &[u8],
    other: &[u8],
    shape: Shape,
    words: &[String],
    random: &mut Random,
) -> Vec<u8> {
    let mut changed = input.to_vec();
    for _ in 0..=random.below(4) {
        changed = match shape {
            Shape::Json if random.below(8) != 0 => json(&changed, words, random),
            Shape::Text if random.below(4) != 0 => text(changed, words, random),
            _ => bytes(changed, other, random),
        };
    }
    changed.truncate(LONGEST);
    changed
}

fn bytes(mut input: Vec<u8>, other: &[u8], random: &mut Random) -> Vec<u8> {
    let at = random.below(input.len() + 1);
    let end = (at + 1 + random.below(32)).min(input.len());
    match random.below(8) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            let numbers = random.of(&NUMBERS).copied().unwrap_or_default().to_le_bytes();
            let width = random.of(&[1, 2, 4, 8]).copied().unwrap_or(1);
            for (byte, new) in input.iter_mut().skip(at).zip(numbers).take(width) {
                *byte = new;
            }
        }
        2 => input.truncate(at),
        3 => drop(input.drain(at.min(end)..end)),
        4 => {
            let part = input.get(at..end).unwrap_or_default().to_vec();
            let times = 1 + random.below(20);
            input.splice(at..at, part.repeat(times)).for_each(drop);
        }
        5 => {
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(other.get(from..).unwrap_or_default());
        }
        6 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.next().to_le_bytes()[0];
            }
        }
        _ => {
            let new = random.next().to_le_bytes();
            input.splice(at..at, new).for_each(drop);
        }
    }
    input
}

fn text(mut input: Vec<u8>, words: &[String], random: &mut Random) -> Vec<u8> {
    let word = random
        .of(words)
        .map(String::as_str)
        .unwrap_or_default()
        .as_bytes();
    let at = random.below(input.len() + 1);
    match random.below(4) {
        0 => input
            .splice(at..at, word.repeat(1 + random.below(200)))
            .for_each(drop),
        1 => {
            let end = (at + random.below(20)).min(input.len());
            input.splice(at..end, word.iter().copied()).for_each(drop);
        }
        _ => input.splice(at..at, word.iter().copied()).for_each(drop),
    }
    input
}

fn json(input: &[u8], words: &[String], random: &mut Random) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(input) else {
        return bytes(input.to_vec(), input, random);
    };
    let mut places = Vec::new();
    gather(&value, "", &mut places);
    let place = random.of(&places).cloned().unwrap_or_default();
    let new = odd(words, random);
    let name = random
        .of(words)
        .map(String::as_str)
        .unwrap_or_default()
        .to_owned();
    match random.below(5) {
        0 => remove(&mut value, &place),
        1 => match value.pointer_mut(&place) {
            Some(Value::Array(items)) => items.push(new),
            Some(Value::Object(fields)) => drop(fields.insert(name, new)),
            Some(other) => *other = json!([other.clone(), other.clone()]),
            None => {}
        },
        _ => {
            if let Some(old) = value.pointer_mut(&place) {
                *old = new;
            }
        }
    }
    value.to_string().into_bytes()
}

fn gather(value: &Value, path: &str, places: &mut Vec<String>) {
    places.push(path.to_owned());
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                gather(item, &format!("{path}/{index}"), places);
            }
        }
        Value::Object(fields) => {
            for (name, item) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                gather(item, &format!("{path}/{name}"), places);
            }
        }
        _ => {}
    }
}

fn remove(value: &mut Value, place: &str) {
    let Some((parent, last)) = place.rsplit_once('/') else {
        return;
    };
    match value.pointer_mut(parent) {
        Some(Value::Object(fields)) => drop(fields.remove(&last.replace("~1", "/").replace("~0", "~"))),
        Some(Value::Array(items)) => {
            if let Some(index) = last.parse().ok().filter(|index| *index < items.len()) {
                items.remove(index);
            }
        }
        _ => {}
    }
}

/// Values that code forgets.
fn odd(words: &[String], random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!(random.of(&NUMBERS)),
        3 => json!(-i64::try_from(random.next() >> 1).unwrap_or(1)),
        4 => json!(random.of(&[0.5, -0.0, 1e-320, 1e300, 1e19])),
        5 => json!(random.of(words)),
        6 => json!("é\u{2028}\0\"\\".repeat(random.below(40))),
        7 => json!([]),
        8 => Value::Object(Map::new()),
        9 => json!(vec![random.below(9); random.below(300)]),
        10 => json!("../".repeat(random.below(5))),
        _ => {
            let mut deep = json!(1);
            for _ in 0..random.below(120) {
                deep = if random.below(2) == 0 {
                    json!([deep])
                } else {
                    json!({"a": deep})
                };
            }
            deep
        }
    }
}
