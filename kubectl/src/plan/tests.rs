use llamero_api::summary::ShardPlan;
use serde_json::{Value, json};

use super::*;

const NOW: Millis = 1_800_000_000_000;

fn node(name: &str, gpus: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {
        "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": gpus},
        "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn listed(nodes: &[Value]) -> Listed {
    Listed {
        nodes: nodes
            .iter()
            .map(|node| serde_json::from_value(node.clone()).unwrap())
            .collect(),
        ..Listed::default()
    }
}

fn deployment(change: Value) -> LlamaDeployment {
    let mut object = json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "llama", "namespace": "chat"},
        "spec": {"model": {"source": {"huggingFace": {"repo": "org/llama"}}, "maxContextLength": 4096},
            "parallelism": {"tensor": 2}, "accelerator": {"resource": "nvidia.com/gpu", "perNode": 1, "memory": "48Gi"}}});
    for (key, value) in change.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

/// 70 GiB of weights.
fn summary() -> llamero_api::CheckpointSummary {
    let shard = |tensor: i64| ShardPlan {
        tensor,
        weight_bytes_per_rank: (70 << 30) / tensor,
        kv_bytes_per_token_per_rank: (1 << 20) / tensor,
        workspace_bytes_per_rank: None,
        workspace_bytes_per_batched_token_per_rank: None,
    };
    let mut summary: llamero_api::CheckpointSummary = serde_json::from_value(json!({
        "formatVersion": 1, "architecture": "LlamaForCausalLM", "hiddenSize": 8192, "layers": 80, "qHeads": 64, "kvHeads": 8,
        "headDim": 128, "ffnSize": 28672, "vocabSize": 128_256, "maxPositionEmbeddings": 8192, "weights": "fp8",
        "parameters": 70_i64 << 30, "checkpointBytes": 70_i64 << 30, "plans": [], "backends": ["cpu", "cuda"]}))
    .unwrap();
    summary.plans = [1, 2, 4, 8].map(shard).to_vec();
    summary
}

fn text(
    listed: &Listed,
    object: LlamaDeployment,
    summary: Option<&llamero_api::CheckpointSummary>,
) -> String {
    let planned = plan(listed, vec![object], summary, NOW).unwrap();
    render::text(&planned, Paint::plain())
}

#[test]
fn a_file_that_nobody_has_applied_gets_nodes() {
    let listed = listed(&[node("a", "1"), node("b", "1"), node("c", "1"), node("d", "1")]);
    insta::assert_snapshot!(text(&listed, deployment(json!({"replicas": 2})), Some(&summary())), @r#"
    chat/llama: 2 of 2 groups would have room
      a group is 2 ranks in 2 pods, 1 nvidia.com/gpu in each
      a rank takes 48.0 GiB: weights 35.0 GiB, keys and values 11.0 GiB for 22528 tokens
      llama-0  new  a, b
      llama-1  new  c, d
    "#);
}

#[test]
fn without_the_headers_only_room_is_looked_for() {
    let listed = listed(&[node("a", "1"), node("b", "1")]);
    insta::assert_snapshot!(text(&listed, deployment(json!({})), None), @r#"
    chat/llama: 1 of 1 group would have room
      a group is 2 ranks in 2 pods, 1 nvidia.com/gpu in each
      nobody has read the checkpoint's headers yet, so whether the model fits into memory is not known: apply it, or give --checkpoint-summary
      llama-0  new  a, b
    "#);
}

#[test]
fn no_room_says_what_is_missing_and_what_would_fit() {
    let listed = listed(&[node("a", "4"), node("b", "0")]);
    insta::assert_snapshot!(text(&listed, deployment(json!({"replicas": 2})), Some(&summary())), @r#"
    chat/llama: 0 of 2 groups would have room
      a group is 2 ranks in 2 pods, 1 nvidia.com/gpu in each
      a rank takes 48.0 GiB: weights 35.0 GiB, keys and values 11.0 GiB for 22528 tokens
      llama-0  new  no room: needs 2 nodes with 3.0 GiB memory, 1 nvidia.com/gpu each; too few have room: some are short of nvidia.com/gpu
      llama-1  new  no room: needs 2 nodes with 3.0 GiB memory, 1 nvidia.com/gpu each; too few have room: some are short of nvidia.com/gpu
      what would fit now:
        accelerator.perNode 2: 2 groups
        parallelism.tensor 4 and accelerator.perNode 4: 1 group
    "#);
}

#[test]
fn a_model_that_is_too_large_is_told_which_split_fits() {
    let listed = listed(&[node("a", "8")]);
    let tight =
        deployment(json!({"accelerator": {"resource": "nvidia.com/gpu", "perNode": 2, "memory": "24Gi"}}));
    insta::assert_snapshot!(text(&listed, tight, Some(&summary())), @r#"
    chat/llama: does not fit: a rank needs 39.0 GiB (weights 35.0 GiB, keys and values 2.0 GiB, workspace 2.0 GiB), but accelerator.memory gives it 24.0 GiB; what would fit: parallelism.tensor 4, or 39.0 GiB a rank
      a group is 2 ranks in 1 pod, 2 nvidia.com/gpu in each
      what would fit now:
        parallelism.tensor 4 and accelerator.perNode 4: 1 group
        parallelism.tensor 8 and accelerator.perNode 8: 1 group
    "#);
}

#[test]
fn headers_that_another_deployment_has_read_are_known() {
    let mut other = deployment(json!({"parallelism": {"tensor": 4}}));
    other.metadata.name = Some("other".into());
    checkpoint::fill(&mut other, Some(&summary()), &[], NOW);
    let mut listed = listed(&[node("a", "1"), node("b", "1")]);
    listed.deployments = vec![other];
    let planned = plan(&listed, vec![deployment(json!({}))], None, NOW).unwrap();
    assert_eq!(
        planned[0].forecast.sizing.as_ref().map(|plan| plan.fits),
        Some(true)
    );
    let elsewhere = deployment(json!({"model": {"source": {"huggingFace": {"repo": "org/another"}}}}));
    let planned = plan(&listed, vec![elsewhere], None, NOW).unwrap();
    assert_eq!(planned[0].forecast.sizing, None);
}

#[test]
fn deployments_of_one_file_count_each_others_room() {
    let listed = listed(&[node("a", "1"), node("b", "1")]);
    let mut second = deployment(json!({}));
    second.metadata.name = Some("second".into());
    let planned = plan(&listed, vec![deployment(json!({})), second.clone()], None, NOW).unwrap();
    assert_eq!(
        planned.iter().map(Planned::has_room).collect::<Vec<_>>(),
        [true, false]
    );
    assert!(plan(&listed, vec![second.clone(), second], None, NOW).is_err());
    let told = render::json(&planned);
    assert_eq!(told[0]["groups"][0]["nodes"], json!(["a", "b"]));
    assert_eq!(told[1]["hasRoom"], false);
}
