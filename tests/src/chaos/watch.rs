//! Looking at the cluster while the faults come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::load::Shared;
use super::target::{NAME, NAMESPACE, PLACEMENT_DEADLINE, gateways};
use crate::cluster::Cluster;
use crate::poll;

/// Between two looks at tokens.
const TICK: Duration = Duration::from_millis(500);
/// Looks at tokens between two looks at the cluster, which cost the machine more.
const LOOKS: u32 = 6;
/// What a loaded machine may take beyond a deadline.
const GRACE: Duration = Duration::from_secs(60);

/// What was seen at one time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// After the start of the run.
    pub at: Duration,
    /// Tokens that had come.
    pub tokens: u64,
    /// Groups that serve; none where the API server did not answer.
    pub ready: Option<u32>,
}

/// What was seen over a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) samples: Vec<Sample>,
    /// Groups that were placed in part for too long, once each.
    pub(super) partial: Vec<String>,
}

/// Looks until `stop`.
pub(super) fn watch(cluster: &Cluster, shared: &Arc<Shared>, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut since: BTreeMap<String, Duration> = BTreeMap::new();
    let mut ready = None;
    let mut look = 0;
    while !stop.load(Ordering::Relaxed) {
        if look % LOOKS == 0 {
            if let Ok(gateways) = gateways(cluster) {
                shared.gateways.send_replace(gateways);
            }
            let groups = groups(cluster);
            ready = groups.as_ref().ok().map(|groups| {
                u32::try_from(groups.values().filter(|group| group.ready).count()).unwrap_or(u32::MAX)
            });
            // What cannot be seen may have been whole meanwhile.
            seen.partial.extend(late(
                &mut since,
                &groups.unwrap_or_default(),
                shared.start.elapsed(),
            ));
        }
        look += 1;
        seen.samples.push(Sample {
            at: shared.start.elapsed(),
            tokens: shared.tokens.load(Ordering::Relaxed),
            ready,
        });
        poll::pause(TICK);
    }
    seen
}

/// Longer than this no fault may keep all streams silent together: the longest one, and time to start again behind it.
const SILENCE: Duration = Duration::from_secs(150);

/// Times without a token of any stream that were too long. Behind the last token nothing was to come.
pub(super) fn silences(samples: &[Sample]) -> Vec<String> {
    let mut found = Vec::new();
    let mut last: Option<Sample> = None;
    for sample in samples {
        let Some(before) = last else {
            last = Some(*sample);
            continue;
        };
        if sample.tokens == before.tokens {
            continue;
        }
        if sample.at.saturating_sub(before.at) > SILENCE {
            let (from, to) = (before.at.as_secs(), sample.at.as_secs());
            found.push(format!("no stream got a token between {from} s and {to} s"));
        }
        last = Some(*sample);
    }
    found
}

/// A group as its pods show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Group {
    ready: bool,
    members: usize,
    bound: usize,
}

impl Group {
    fn is_partial(self) -> bool {
        self.bound > 0 && self.bound < self.members
    }
}

fn groups(cluster: &Cluster) -> Result<BTreeMap<String, Group>> {
    let words = ["-n", NAMESPACE, "llamagroups,pods", "--request-timeout=3s"];
    let list = cluster.kubectl().get(&words)?;
    gather(list["items"].as_array().context("no list")?)
}

fn gather(items: &[Value]) -> Result<BTreeMap<String, Group>> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let ours = items
        .iter()
        .filter(|item| item["kind"] == "LlamaGroup" && item["spec"]["deployment"] == NAME);
    for item in ours {
        let name = item["metadata"]["name"]
            .as_str()
            .context("a group without a name")?;
        let group = groups.entry(name.to_owned()).or_default();
        group.ready = item["status"]["phase"] == "Serving";
        group.members = item["spec"]["members"].as_array().map_or(0, Vec::len);
    }
    for item in items.iter().filter(|item| item["kind"] == "Pod") {
        let is_bound =
            item["spec"]["nodeName"].is_string() && item["metadata"]["deletionTimestamp"].is_null();
        let owner = item["metadata"]["ownerReferences"][0]["name"].as_str();
        if let (Some(group), true) = (owner.and_then(|owner| groups.get_mut(owner)), is_bound) {
            group.bound += 1;
        }
    }
    Ok(groups)
}

/// Groups that have been partial for longer than their deadline. Each is told once.
fn late(
    since: &mut BTreeMap<String, Duration>,
    groups: &BTreeMap<String, Group>,
    now: Duration,
) -> Vec<String> {
    since.retain(|name, _| groups.get(name).is_some_and(|group| group.is_partial()));
    let mut late = Vec::new();
    for (name, group) in groups.iter().filter(|(_, group)| group.is_partial()) {
        let begin = *since.entry(name.clone()).or_insert(now);
        if begin != Duration::MAX && now.saturating_sub(begin) > PLACEMENT_DEADLINE + GRACE {
            late.push(format!(
                "group {name} had {} of {} pods bound for {} s",
                group.bound,
                group.members,
                (now - begin).as_secs()
            ));
            since.insert(name.clone(), Duration::MAX);
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn silence_counts_between_tokens_only() {
        let at = |seconds: u64, tokens: u64| Sample {
            at: Duration::from_secs(seconds),
            tokens,
            ready: None,
        };
        let short = [at(0, 0), at(10, 5), at(160, 5), at(161, 6), at(900, 6)];
        assert_eq!(silences(&short), ["no stream got a token between 10 s and 161 s"]);
        assert!(silences(&[at(0, 0), at(100, 1), at(240, 2), at(900, 2)]).is_empty());
    }

    #[test]
    fn a_group_is_what_its_pods_show() {
        let pod = |group: &str, node: Value| json!({"kind": "Pod", "metadata": {"ownerReferences": [{"name": group}]}, "spec": {"nodeName": node}});
        let items = [
            json!({"kind": "LlamaGroup", "metadata": {"name": "g"}, "spec": {"deployment": NAME, "members": [{}, {}]}, "status": {"phase": "Serving"}}),
            pod("g", json!("a")),
            pod("g", Value::Null),
            pod("other", json!("a")),
        ];
        let groups = gather(&items).unwrap();
        assert_eq!(groups.len(), 1);
        assert_eq!(
            groups["g"],
            Group {
                ready: true,
                members: 2,
                bound: 1
            }
        );
    }

    #[test]
    fn a_partial_group_is_late_after_its_deadline_and_told_once() {
        let partial = BTreeMap::from([(
            "g".to_owned(),
            Group {
                ready: false,
                members: 2,
                bound: 1,
            },
        )]);
        let whole = BTreeMap::from([(
            "g".to_owned(),
            Group {
                ready: false,
                members: 2,
                bound: 2,
            },
        )]);
        let limit = PLACEMENT_DEADLINE + GRACE;
        let mut since = BTreeMap::new();
        assert!(late(&mut since, &partial, Duration::ZERO).is_empty());
        assert!(late(&mut since, &partial, limit).is_empty());
        assert_eq!(late(&mut since, &partial, limit + TICK).len(), 1);
        assert!(late(&mut since, &partial, limit * 2).is_empty());
        assert!(late(&mut since, &whole, limit * 2).is_empty());
        assert!(late(&mut since, &partial, limit * 2).is_empty());
    }
}
