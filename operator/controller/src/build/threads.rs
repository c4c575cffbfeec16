//! How many threads a pod's ranks compute with.
//!
//! Two ranks on one node that each took all of its cores would take them from each other, and a rank that waits for a core
//! holds up its whole group. So what a pod asks for counts, not what its node has.

use llamero_api::{LlamaGroup, group::GroupTemplate};
use llamero_core::resources::{CPU, Resources};

/// Flags of the worker's command line. None where the user says how many threads, where the container's limit says it (the worker
/// sees that itself), and for groups from before pods could share a node.
#[must_use]
pub fn arguments(group: &LlamaGroup, index: i32) -> Option<[String; 2]> {
    let template = &group.spec.template;
    let is_older = template.one_pod_per_node.is_none();
    if is_older || template.engine.threads.is_some() || template.accelerator_resource.is_some() {
        return None;
    }
    match cpu_of(template) {
        Cpu::Limited => None,
        Cpu::Requested(milli) => {
            let each = milli / (1000 * i64::from(template.ranks_per_pod.max(1)));
            Some(["--threads".to_owned(), each.clamp(1, 1024).to_string()])
        }
        Cpu::Open => {
            let members = &group.spec.members;
            let node = members
                .iter()
                .find(|member| member.index == index)?
                .node
                .as_ref()?;
            let there = members.iter().filter(|member| member.node.as_ref() == Some(node));
            let count = there.count();
            (count > 1).then(|| ["--pods-on-node".to_owned(), count.to_string()])
        }
    }
}

/// What a pod may use of its node's cores.
enum Cpu {
    Limited,
    /// In thousandths.
    Requested(i64),
    Open,
}

fn cpu_of(template: &GroupTemplate) -> Cpu {
    let Some(resources) = &template.worker.resources else {
        return Cpu::Open;
    };
    if Resources::from_quantities(&resources.limits).get(CPU) > 0 {
        return Cpu::Limited;
    }
    match Resources::from_quantities(&resources.requests).get(CPU) {
        0 => Cpu::Open,
        milli => Cpu::Requested(milli),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn flags(resources: Value, change: impl FnOnce(&mut Value)) -> Option<String> {
        let mut group = json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup", "metadata": {"name": "g"},
            "spec": {
                "deployment": "d", "revision": "r", "generation": 1,
                "members": [{"index": 0, "attempt": 0, "node": "a"}, {"index": 1, "attempt": 0, "node": "a"},
                    {"index": 2, "attempt": 0, "node": "b"}],
                "template": {
                    "modelName": "m", "maxContextLength": 1, "tensor": 3, "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 0,
                    "weightBytesPerRank": 0, "stallTimeout": "1s", "source": {"hostPath": {"path": "/m"}},
                    "onePodPerNode": "Preferred", "worker": {"resources": resources}
                }
            }
        });
        change(&mut group["spec"]);
        let group: LlamaGroup = serde_json::from_value(group).unwrap();
        arguments(&group, 1).map(|flags| flags.join(" "))
    }

    #[test]
    fn what_is_asked_for_counts_and_not_what_the_node_has() {
        for (cpu, threads) in [("250m", 1), ("1", 1), ("2500m", 2), ("16", 16)] {
            let resources = json!({"requests": {"cpu": cpu}});
            let expected = Some(format!("--threads {threads}"));
            assert_eq!(flags(resources, |_| {}), expected, "{cpu}");
        }
        let two = |spec: &mut Value| spec["template"]["ranksPerPod"] = json!(2);
        assert_eq!(
            flags(json!({"requests": {"cpu": "5"}}), two).as_deref(),
            Some("--threads 2")
        );
        assert_eq!(flags(json!({"limits": {"cpu": "4"}}), |_| {}), None);
    }

    #[test]
    fn pods_that_ask_for_nothing_share_the_node_evenly() {
        assert_eq!(flags(json!({}), |_| {}).as_deref(), Some("--pods-on-node 2"));
        let apart = |spec: &mut Value| spec["members"][0]["node"] = json!("b");
        assert_eq!(flags(json!({}), apart), None);
    }

    #[test]
    fn what_the_user_says_or_an_older_group_has_stays() {
        let requests = || json!({"requests": {"cpu": "250m"}});
        let said = |spec: &mut Value| spec["template"]["engine"] = json!({"threads": 7});
        assert_eq!(flags(requests(), said), None);
        let older = |spec: &mut Value| {
            spec["template"].as_object_mut().unwrap().remove("onePodPerNode");
        };
        assert_eq!(flags(requests(), older), None);
    }
}
