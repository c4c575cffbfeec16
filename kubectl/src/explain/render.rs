//! The answer for people and for programs.

use serde_json::{Value, json};

use super::reason::{Explanation, Trouble};
use crate::{
    paint::{Mood, Paint, harmless},
    words::{count, table},
};

/// For people.
#[must_use]
pub fn text(explained: &[Explanation], paint: Paint) -> String {
    let texts: Vec<String> = explained.iter().map(|one| deployment(one, paint)).collect();
    texts.join("")
}

fn deployment(one: &Explanation, paint: Paint) -> String {
    let name = paint.paint(Mood::Bold, &one.name);
    let groups = format!("{} of {}", one.ready, count(i64::from(one.wanted), "group"));
    match &one.trouble {
        None => format!("{name} {}: {groups} serve\n", paint.paint(Mood::Good, "is ready")),
        Some(trouble) => {
            let words = match one.ready >= one.wanted {
                true => "serves, but something is wrong",
                false => "is not ready",
            };
            format!(
                "{name} {}: {groups} serve\n{}",
                paint.paint(Mood::Bad, words),
                table(&rows(trouble))
            )
        }
    }
}

fn rows(trouble: &Trouble) -> Vec<Vec<String>> {
    let condition = match trouble.since.is_empty() {
        true => trouble.condition.clone(),
        false => format!("{}, for {}", trouble.condition, trouble.since),
    };
    let lines = [
        ("condition", condition),
        ("object", trouble.object.clone()),
        ("number", trouble.number.clone()),
        ("why", harmless(&trouble.why)),
        ("way out", trouble.way_out.clone()),
    ];
    lines
        .into_iter()
        .filter(|(_, words)| !words.is_empty())
        .map(|(what, words)| vec![format!("  {what}"), words])
        .collect()
}

/// For programs.
#[must_use]
pub fn json(explained: &[Explanation]) -> Value {
    let one = |one: &Explanation| {
        let trouble = one.trouble.as_ref().map(|trouble| {
            json!({"condition": trouble.condition, "since": trouble.since, "object": trouble.object,
                "number": trouble.number, "why": trouble.why, "wayOut": trouble.way_out})
        });
        json!({"deployment": one.name, "readyGroups": one.ready, "wantedGroups": one.wanted, "trouble": trouble})
    };
    Value::Array(explained.iter().map(one).collect())
}
