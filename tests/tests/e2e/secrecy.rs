//! What nobody must read in statuses, Events and logs.

use anyhow::{Result, ensure};
use llamero_tests::cluster::Cluster;
use serde_json::Value;

use crate::fixture::NAMESPACE;

const SYSTEM: &str = "llamero-system";

/// None of the words stands in a status, in an Event, or in the log of any part.
pub(crate) fn keeps_to_itself(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let kubectl = cluster.kubectl();
    for kind in ["llamadeployments", "llamagroups", "pods"] {
        let list = kubectl.get(&[kind, "--all-namespaces"])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        ensure!(!items.is_empty(), "there are no {kind}");
        // Failures of a group are kept in its specification.
        let statuses: Vec<&Value> = items
            .iter()
            .flat_map(|item| [&item["status"], &item["spec"]["failures"]])
            .collect();
        absent(
            &format!("a status of {kind}"),
            &serde_json::to_string(&statuses)?,
            words,
        )?;
    }
    let events = kubectl.get(&["events", "--all-namespaces"])?;
    let told = events["items"].as_array().is_some_and(|all| !all.is_empty());
    ensure!(told, "there are no Events");
    absent("an Event", &events.to_string(), words)?;
    let mut read = 0;
    for namespace in [SYSTEM, NAMESPACE] {
        let pods = kubectl.get(&["-n", namespace, "pods"])?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            // One that goes or comes has none.
            let Ok(log) = kubectl.run(&["-n", namespace, "logs", name, "--all-containers"]) else {
                continue;
            };
            absent(&format!("the log of {name}"), &log, words)?;
            read += 1;
        }
    }
    ensure!(
        read >= 4,
        "{read} logs were read; operator, gateway and two workers have one each"
    );
    Ok(())
}

fn absent(place: &str, text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(!text.contains(word), "{place} holds {word:?}");
    }
    Ok(())
}
