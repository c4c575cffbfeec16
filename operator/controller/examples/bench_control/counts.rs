//! What the whole control plane does in a phase: requests as the API server counts them, and processor time of every part.

use std::{collections::BTreeMap, fs};

use anyhow::Context as _;
use kube::Client;
use serde_json::{Value, json};

use crate::process::seconds_of;

/// Parts of a control plane, by the first fifteen characters of their names, as Linux keeps them.
const PARTS: [&str; 6] = [
    "etcd",
    "kube-apiserver",
    "kube-controller",
    "kube-scheduler",
    "kwok",
    "llamero-operato",
];
/// Verbs that are left out: watches and connections last, and lists are those of caches that start.
const UNCOUNTED: [&str; 3] = ["WATCH", "CONNECT", "LIST"];

/// Totals since everything started.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    /// By verb and resource.
    requests: BTreeMap<String, f64>,
    /// Seconds of processor time by part.
    cpu: BTreeMap<String, f64>,
}

impl Counts {
    /// As they are now.
    pub(crate) async fn read(client: &Client) -> anyhow::Result<Self> {
        let request = axum::http::Request::get("/metrics").body(Vec::new())?;
        let text = client
            .request_text(request)
            .await
            .context("the API server's metrics")?;
        Ok(Self {
            requests: requests(&text),
            cpu: cpu()?,
        })
    }

    /// What has happened since, without what happened less than once in ten groups.
    pub(crate) fn since(&self, before: &Self, groups: usize) -> Value {
        let mut requests: BTreeMap<&str, f64> = BTreeMap::new();
        for (what, total) in &self.requests {
            let more = total - before.requests.get(what).copied().unwrap_or_default();
            if more * 10.0 >= groups as f64 {
                requests.insert(what, more);
            }
        }
        let cpu: BTreeMap<&str, f64> = self
            .cpu
            .iter()
            .map(|(part, total)| {
                let more = total - before.cpu.get(part).copied().unwrap_or_default();
                (part.as_str(), (more * 100.0).round() / 100.0)
            })
            .collect();
        json!({"requests": requests, "cpuSeconds": cpu})
    }
}

/// `apiserver_request_total` by verb and resource, over codes, versions and scopes.
fn requests(text: &str) -> BTreeMap<String, f64> {
    let mut totals: BTreeMap<String, f64> = BTreeMap::new();
    for line in text.lines() {
        let Some((labels, value)) = line
            .strip_prefix("apiserver_request_total{")
            .and_then(|rest| rest.rsplit_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
            labels[start..].split('"').next()
        };
        // Labels are in the order of the alphabet: `subresource` comes after `resource`.
        let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else {
            continue;
        };
        if UNCOUNTED.contains(&verb) || resource.is_empty() {
            continue;
        }
        let part = label("subresource").filter(|part| !part.is_empty());
        let what = part.map_or_else(
            || format!("{verb} {resource}"),
            |part| format!("{verb} {resource}/{part}"),
        );
        *totals.entry(what).or_default() += value.parse::<f64>().unwrap_or_default();
    }
    totals
}

fn cpu() -> anyhow::Result<BTreeMap<String, f64>> {
    let mut seconds: BTreeMap<String, f64> = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // Processes that end meanwhile are left out.
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else {
            continue;
        };
        let name = name.trim_end();
        if (PARTS.contains(&name) || pid == std::process::id())
            && let Ok(took) = seconds_of(pid)
        {
            *seconds.entry(name.to_owned()).or_default() += took;
        }
    }
    Ok(seconds)
}
