//! A KV cache in FP8.

use tonic::Code;

use crate::harness::{Worker, refused, sampled_story, turn};
use crate::pods::{form, members, pod_with};

const FP8: [&str; 2] = ["--kv-cache-dtype", "fp8"];

/// Two pods over TCP give what one process gives, which is not what bf16 gives; and no answer goes on across the two.
#[tokio::test]
async fn two_ranks_give_the_answer_of_one_and_keep_to_their_kind() {
    let _turn = turn().await;
    let in_bf16 = Worker::alone(1, &[]).await;
    let usual = answer(&in_bf16).await;
    drop(in_bf16);
    let alone = Worker::alone(1, &FP8).await;
    let reference = answer(&alone).await;
    assert_ne!(reference.0, usual.0, "the cache is not in FP8");
    assert!(reference.1.starts_with(&usual.1) && reference.1 != usual.1);
    let resumed = llamero_proto::v1::CompletionRequest {
        resume_token_ids: usual.0[..10].to_vec(),
        content_identity: usual.1,
        ..sampled_story(120)
    };
    refused(
        &alone,
        resumed,
        Code::FailedPrecondition,
        "would not go on as it began",
    )
    .await;
    drop(alone);

    let (leader, member) = (pod_with(0, "a", &FP8).await, pod_with(1, "b", &FP8).await);
    let two = members(2, [(&leader, "a"), (&member, "b")]);
    for worker in [&leader, &member] {
        form(worker, &two).await.unwrap();
    }
    leader
        .report_when("the group serves", |report| report.group_serving)
        .await;
    let numerics = leader.report().await.ranks[0].numerics.clone();
    assert!(numerics.contains("kv-e4m3"), "{numerics}");
    assert_eq!(answer(&leader).await, reference);
    // Again, now with what the prefix cache holds.
    assert_eq!(answer(&leader).await, reference);
}

/// Tokens, and what the answer says that it was begun on.
async fn answer(worker: &Worker) -> (Vec<u32>, String) {
    let mut stream = worker
        .completion()
        .complete(sampled_story(120))
        .await
        .unwrap()
        .into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let identity = first.content_identity.clone();
    let mut whole = crate::harness::Whole::default();
    whole.add(first);
    let whole = crate::harness::finish(whole, &mut stream).await.unwrap();
    (whole.token_ids, identity)
}

#[tokio::test]
async fn ranks_of_two_kinds_form_no_group_and_say_why() {
    let _turn = turn().await;
    let (leader, member) = (pod_with(0, "a", &FP8).await, pod_with(1, "b", &[]).await);
    let two = members(2, [(&leader, "a"), (&member, "b")]);
    for worker in [&leader, &member] {
        form(worker, &two).await.unwrap();
    }
    let report = leader
        .report_when("the leader says why", |report| {
            report.ranks[0].message.contains("one type of KV cache")
        })
        .await;
    let message = &report.ranks[0].message;
    assert!(
        message.contains("kv-e4m3") && message.contains("kv-bf16"),
        "{message}"
    );
    assert!(!report.group_serving);
}
