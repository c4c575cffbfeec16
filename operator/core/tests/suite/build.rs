//! Objects for tests, in few words.

use std::sync::Arc;

use llamero_api::{
    CheckpointSummary, LlamaDeployment, LlamaDeploymentStatus, LlamaGroup, LlamaGroupStatus,
    deployment::CheckpointStatus,
    group::{GroupPhase, LlamaGroupSpec, RankPhase},
    summary::ShardPlan,
};
use llamero_core::{
    Planner,
    children::{ManagedObject, disruption_budget, leader_service},
    decide,
    observed::{
        Deployment, Exit, Group, InspectPod, Node, Observed, Pod, PodPhase, Rank, Report, Revision, Settings,
    },
    placement::ledger,
    plan::{Action, Plan},
    report,
    resources::Resources,
    revision, sizing,
    time::{self, Millis},
};
use serde_json::{Value, json};

/// A planner that was told of the cluster, and of no deployment yet.
pub(crate) fn planner(observed: &Observed) -> Planner {
    let mut planner = Planner::default();
    planner.set_cluster(
        &observed.settings,
        &observed.priority_classes,
        observed.default_priority,
    );
    let nodes = observed.nodes.iter();
    planner.set_nodes(nodes.map(|node| (node.name.clone(), Some(node.clone()))));
    planner
}

/// The present of table tests.
pub(crate) const NOW: Millis = 1_800_000_000_000;
pub(crate) const GPU: &str = "nvidia.com/gpu";

/// A checkpoint of 8 GiB with 8 heads.
pub(crate) fn summary() -> CheckpointSummary {
    let plans = [1, 2, 4, 8].map(|tensor| ShardPlan {
        tensor,
        weight_bytes_per_rank: (8 << 30) / tensor,
        kv_bytes_per_token_per_rank: 1024,
        workspace_bytes_per_rank: None,
        workspace_bytes_per_batched_token_per_rank: None,
    });
    CheckpointSummary {
        format_version: 1,
        architecture: "LlamaForCausalLM".into(),
        hidden_size: 4096,
        layers: 32,
        q_heads: 8,
        kv_heads: 8,
        head_dim: 128,
        ffn_size: 14336,
        vocab_size: 128_256,
        max_position_embeddings: 8192,
        weights: "fp8".into(),
        quantization: None,
        parameters: 8 << 30,
        checkpoint_bytes: 8 << 30,
        tokenizer_bytes: Some(8 << 20),
        plans: plans.to_vec(),
        problem: None,
        backends: vec!["cpu".into(), "cuda".into()],
        one_device_backends: vec![],
        one_node_backends: vec![],
        stage_backends: vec![],
        fp8_kv_backends: vec![],
        commit: None,
        content_identity: None,
    }
}

/// A deployment of two GPU ranks on two nodes, whose checkpoint is known.
pub(crate) fn deployment(change: impl FnOnce(&mut Value)) -> Deployment {
    let mut object = json!({
        "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "llama", "namespace": "ns", "uid": "uid-llama", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "model": {"source": {"persistentVolumeClaim": {"claimName": "w"}}},
            "parallelism": {"tensor": 2},
            "accelerator": {"resource": GPU, "perNode": 1, "memory": "80Gi"},
            "replicas": 1,
            "recovery": {"restartBudget": 3}
        }
    });
    change(&mut object);
    let mut object: LlamaDeployment = serde_json::from_value(object).unwrap();
    let status = object.status.get_or_insert_default();
    if status.checkpoint.is_none() {
        status.checkpoint = Some(CheckpointStatus {
            key: revision::inspect_key(&object.spec),
            pod_uid: Some("uid-inspected".into()),
            image: None,
            image_id: None,
            inspected_at: time::to_time(NOW - 3_600_000),
            summary: Some(summary()),
            error: None,
        });
    }
    let service = leader_service(&object);
    let plan = sizing::plan(&object.spec, &summary(), &[]);
    let digest = revision::digest(&object.spec, object.model_name());
    let settings = Settings {
        worker_image: "worker:1".into(),
        ..Settings::default()
    };
    let revisions = vec![Revision {
        name: format!("llama-{digest}"),
        uid: format!("uid-{digest}"),
        digest,
        number: 1,
        template: Some(revision::template(&object, &plan, None, &settings)),
    }];
    Deployment {
        object: Arc::new(object),
        groups: vec![],
        names_in_use: Arc::default(),
        claims: Arc::default(),
        inspect: vec![],
        service: Some(Arc::new(service)),
        network_policy: None,
        revisions,
        replicas_manager: None,
        refusals: vec![],
        demand: None,
    }
}

/// A node with so many GPUs.
pub(crate) fn node(name: &str, gpus: i64) -> Node {
    Node {
        name: name.into(),
        ready: true,
        allocatable: Resources::new()
            .with("cpu", 16_000)
            .with("memory", 64 << 30)
            .with("pods", 110)
            .with(GPU, gpus),
        ..Node::default()
    }
}

/// The deployment on three nodes with one GPU each.
pub(crate) fn observed(mut deployment: Deployment) -> Observed {
    for group in deployment
        .groups
        .iter_mut()
        .filter(|group| group.budget.is_some())
    {
        let ranks = group
            .pods
            .iter()
            .flat_map(|pod| &pod.report)
            .flat_map(|report| &report.ranks);
        let holds_weights = ranks.into_iter().any(|rank| rank.loaded_bytes > 0);
        let pods = group.object.spec.members.len();
        group.budget = Some(Arc::new(disruption_budget(&group.object, pods, holds_weights)));
    }
    Observed {
        settings: Settings {
            worker_image: "worker:1".into(),
            disruption_taints: vec!["going".into()],
            urgent_taints: vec!["gone-soon".into()],
            ..Settings::default()
        },
        nodes: vec![node("a", 1), node("b", 1), node("c", 1)],
        deployments: vec![deployment],
        ..Observed::default()
    }
}

/// A group as a deployment would make it, with members at (attempt, node, recorded UID).
pub(crate) fn group(
    deployment: &Deployment,
    name: &str,
    members: &[(i32, Option<&str>, Option<&str>)],
) -> Group {
    let object = &deployment.object;
    let plan = sizing::plan(&object.spec, &summary(), &[]);
    let template = revision::template(
        object,
        &plan,
        None,
        &Settings {
            worker_image: "worker:1".into(),
            ..Settings::default()
        },
    );
    let members = members.iter().enumerate().map(|(index, (attempt, node, uid))| {
        json!({"index": index, "attempt": attempt, "node": node, "podUID": uid,
               "placedAt": node.map(|_| time::to_time(NOW - 1000))})
    });
    let recorded = members.clone().all(|m| m["podUID"].is_string());
    let spec: LlamaGroupSpec = serde_json::from_value(json!({
        "deployment": "llama",
        "revision": revision::digest(&object.spec, object.model_name()),
        "template": template,
        "generation": i64::from(recorded),
        "members": members.collect::<Vec<_>>(),
    }))
    .unwrap();
    let mut object = LlamaGroup::new(name, spec);
    object.metadata.namespace = Some("ns".into());
    object.metadata.uid = Some(format!("uid-{name}"));
    object.metadata.resource_version = Some("7".into());
    let budget = disruption_budget(
        &object,
        usize::try_from(deployment.object.spec.pods()).unwrap(),
        false,
    );
    Group {
        object: Arc::new(object),
        writing: None,
        pods: vec![],
        placeholders: vec![],
        budget: Some(Arc::new(budget)),
        refusals: vec![],
        load: None,
    }
}

/// A gated pod of a member.
pub(crate) fn gated(group: &str, index: i32, attempt: i32, uid: &str) -> Pod {
    Pod {
        name: format!("{group}-{index}-{attempt}"),
        uid: uid.into(),
        index,
        attempt,
        gated: true,
        ..Pod::default()
    }
}

/// A running pod of a member that has reported a rank in this phase.
pub(crate) fn running(
    group: &str,
    index: i32,
    attempt: i32,
    uid: &str,
    node: &str,
    generation: i64,
    phase: RankPhase,
) -> Pod {
    let rank = Rank {
        rank: index,
        phase,
        loaded_bytes: 1 << 30,
        total_bytes: 4 << 30,
        pid: 10,
        ..Rank::default()
    };
    Pod {
        gated: false,
        node: Some(node.into()),
        phase: PodPhase::Running,
        ip: Some(format!("10.0.0.{}", index + 1)),
        report: Some(Report {
            received_at: NOW,
            alive_at: NOW,
            generation,
            ranks: vec![rank],
            serving: phase == RankPhase::Serving && index == 0,
            draining: false,
            longest_sequence: 0,
        }),
        ..gated(group, index, attempt, uid)
    }
}

/// A pod that has ended.
pub(crate) fn ended(pod: Pod, code: i32, message: &str) -> Pod {
    Pod {
        phase: if code == 0 {
            PodPhase::Succeeded
        } else {
            PodPhase::Failed
        },
        exit: Some(Exit {
            code,
            reason: "Error".into(),
            message: message.into(),
        }),
        ..pod
    }
}

/// A serving group of two pods on nodes a and b.
pub(crate) fn serving(deployment: &Deployment, name: &str, nodes: [&str; 2]) -> Group {
    let (u0, u1) = (format!("{name}-u0"), format!("{name}-u1"));
    let mut group = group(
        deployment,
        name,
        &[(0, Some(nodes[0]), Some(&u0)), (0, Some(nodes[1]), Some(&u1))],
    );
    group.pods = vec![
        running(name, 0, 0, &u0, nodes[0], 1, RankPhase::Serving),
        running(name, 1, 0, &u1, nodes[1], 1, RankPhase::Serving),
    ];
    status(&mut group, |status| {
        status.phase = GroupPhase::Serving;
        status.ready = true;
    });
    group.budget = Some(Arc::new(disruption_budget(&group.object, 2, true)));
    group
}

pub(crate) fn status(group: &mut Group, change: impl FnOnce(&mut LlamaGroupStatus)) {
    let object = Arc::make_mut(&mut group.object);
    change(object.status.get_or_insert_default());
}

pub(crate) fn spec(group: &mut Group, change: impl FnOnce(&mut LlamaGroupSpec)) {
    change(&mut Arc::make_mut(&mut group.object).spec);
}

/// The deployment on three nodes, changed, with its bound pods counted.
pub(crate) fn with(change: impl FnOnce(&mut Deployment)) -> Observed {
    let mut deployment = deployment(|_| {});
    change(&mut deployment);
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    observed
}

/// Counts bound pods on their nodes, as the controller does.
pub(crate) fn count_usage(observed: &mut Observed) {
    let groups = observed.deployments.iter().flat_map(|d| &d.groups);
    let bound: Vec<(String, Resources)> = groups
        .flat_map(|g| g.pods.iter().map(move |pod| (g, pod)))
        .filter(|(_, pod)| !pod.phase.ended())
        .filter_map(|(g, pod)| {
            Some((
                pod.node.clone()?,
                llamero_core::resources::of_template(&g.object.spec.template),
            ))
        })
        .collect();
    for (name, request) in bound {
        if let Some(node) = observed.nodes.iter_mut().find(|node| node.name == name) {
            node.used.entry(0).or_default().add(&request);
        }
    }
}

/// The steps in one word each, with what they are about.
pub(crate) fn words(plan: &Plan) -> Vec<String> {
    plan.steps
        .iter()
        .map(|step| match &step.action {
            Action::CreateGroup { name, .. } => format!("create group {name}"),
            Action::WriteGroup { group, .. } => format!("write {}: {}", group.name, step.reason),
            Action::CreatePod { name, .. } => format!("create pod {name}"),
            Action::CreatePlaceholder { name, .. } => format!("create placeholder {name}"),
            Action::Ungate { pod, node, .. } => format!("ungate {} to {node}", pod.key.name),
            Action::DeletePod {
                pod, grace_seconds, ..
            } => match grace_seconds {
                Some(grace) => format!("delete pod {} in {grace}", pod.key.name),
                None => format!("delete pod {}", pod.key.name),
            },
            Action::Form {
                group,
                generation,
                lost,
                targets,
                ..
            } => {
                format!(
                    "form {} generation {generation} at {} pods{}",
                    group.name,
                    targets.len(),
                    if lost.is_empty() {
                        String::new()
                    } else {
                        format!(" without ranks {lost:?}")
                    }
                )
            }
            Action::DrainGroup { group, .. } => format!("drain {}", group.name),
            Action::DeleteGroup { group, .. } => format!("delete group {}", group.name),
            Action::Apply { object, .. } => match object {
                ManagedObject::Service(_) => "apply service".into(),
                ManagedObject::Policy(_) => "apply policy".into(),
                ManagedObject::Budget(budget) => {
                    format!(
                        "apply pdb {:?}",
                        budget.spec.as_ref().and_then(|spec| spec.min_available.clone())
                    )
                }
            },
            Action::ScaleDeployment { replicas, .. } => format!("scale to {replicas}"),
            Action::CreateInspectPod {
                trial: Some(_), node, ..
            } => format!("try the revision on {node}"),
            Action::CreateInspectPod { .. } => "create inspect pod".into(),
            Action::CreateRevision { number, .. } => format!("keep revision {number}"),
            Action::RenumberRevision { number, .. } => format!("number revision {number}"),
            Action::DeleteRevision { name, .. } => format!("forget {name}"),
        })
        .collect()
}

/// The status of the only deployment, after a pass at this time.
pub(crate) fn status_at(observed: &Observed, now: Millis) -> LlamaDeploymentStatus {
    let plan = decide(observed, now);
    let reports = report(observed, &plan, now).deployments;
    reports.into_values().next().unwrap()
}

/// Status, reason and message of a condition.
pub(crate) fn condition<'a>(status: &'a LlamaDeploymentStatus, type_: &str) -> (&'a str, &'a str, &'a str) {
    let found = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
    (&found.status, &found.reason, &found.message)
}

/// A pod that tries the deployment's revision, so far.
pub(crate) fn trial(deployment: &mut Deployment, phase: PodPhase) {
    let object = &deployment.object;
    let digest = revision::digest(&object.spec, object.model_name());
    deployment.inspect = vec![InspectPod {
        name: format!("llama-inspect-trial-{digest}"),
        uid: "uid-trial".into(),
        key: format!("trial-{digest}"),
        phase,
        finished_at: phase.ended().then_some(NOW),
        ..InspectPod::default()
    }];
}

/// The specification that the plan writes to a group.
pub(crate) fn written<'a>(plan: &'a Plan, name: &str) -> &'a LlamaGroupSpec {
    plan.steps
        .iter()
        .find_map(|step| match &step.action {
            Action::WriteGroup { group, spec, .. } if group.name == name => Some(&**spec),
            _ => None,
        })
        .unwrap_or_else(|| panic!("nothing is written to {name}: {:?}", words(plan)))
}

/// Reserved members of a node.
pub(crate) fn reserved(observed: &Observed, node: &str) -> usize {
    ledger::reservations(observed).get(node).map_or(0, Vec::len)
}
