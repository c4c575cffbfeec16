//! A group that goes on without a rank, and takes another in its place later: the answer does not change.

use llamero_proto::v1::{CompletionRequest, FormRequest, Member, Phase, PodReport, RankReport};
use rustix::process::Signal;
use tonic::Code;

use crate::harness::{Worker, all_serve, begin, complete, finish, refused, sampled_story, send, story, turn};
use crate::pods::form;

const TOKENS: u32 = 50;

/// Ranks that have one kv head each while all are there, and two when one is lost: their KV memory then holds half the context.
async fn pod(member: u32, uid: &str) -> Worker {
    let member = member.to_string();
    let group = ["--group-uid", "group", "--tensor", "3", "--ranks-per-pod", "1"];
    let own = ["--member", &member, "--pod-uid", uid, "--drain-grace", "100ms"];
    let more = ["--shared-memory", "false", "--kv-memory", "9500000"];
    Worker::start(&[&group[..], &own, &more].concat()).await
}

fn members(generation: u64, lost: &[u32], pods: &[(u32, &Worker, &str)]) -> FormRequest {
    let member = |(rank, worker, uid): &(u32, &Worker, &str)| Member {
        rank: *rank,
        pod_uid: (*uid).into(),
        ip: "127.0.0.1".into(),
        port: worker.ports.ranks[0].into(),
    };
    FormRequest {
        group_uid: "group".into(),
        generation,
        members: pods.iter().map(member).collect(),
        key: vec![generation as u8; 32],
        lost: lost.to_vec(),
    }
}

async fn form_all(generation: u64, lost: &[u32], pods: &[(u32, &Worker, &str)]) {
    let request = members(generation, lost, pods);
    for (_, worker, _) in pods {
        assert_eq!(form(worker, &request).await.unwrap().generation, generation);
    }
}

async fn serves(leader: &Worker, generation: u64) -> PodReport {
    leader
        .report_when("the group serves", |report| {
            report.group_serving && report.ranks[0].generation == generation
        })
        .await
}

fn rank(report: &PodReport) -> RankReport {
    report.ranks[0].clone()
}

#[tokio::test]
async fn an_answer_goes_on_without_a_rank_and_with_its_successor() {
    let _turn = turn().await;
    let (leader, second, third) = (pod(0, "a").await, pod(1, "b").await, pod(2, "c").await);
    form_all(1, &[], &[(0, &leader, "a"), (1, &second, "b"), (2, &third, "c")]).await;
    let whole = serves(&leader, 1).await;
    assert!(
        whole.lost.is_empty() && whole.longest_sequence == 1024,
        "{whole:?}"
    );
    let reference = complete(&leader, sampled_story(TOKENS)).await.unwrap();

    let (head, mut stream) = begin(&leader, sampled_story(TOKENS), 5).await;
    drop(third);
    leader
        .report_when("the third rank is lost", |report| {
            report.ranks[0].phase() == Phase::Connecting
        })
        .await;
    refusals(&leader, &second).await;
    form_all(2, &[2], &[(0, &leader, "a"), (1, &second, "b")]).await;
    assert_eq!(finish(head, &mut stream).await.unwrap(), reference);
    let two = serves(&leader, 2).await;
    assert_eq!(two.lost, [2]);
    let (before, after) = (rank(&whole), rank(&two));
    assert_eq!((after.pid, after.restarts), (before.pid, 0));
    assert_eq!(after.loaded_bytes, after.total_bytes);
    assert!(after.total_bytes > before.total_bytes, "it took nothing over");
    // Columns are read with the gaps between them, so that a little more is read than is taken over.
    let (read, taken) = (
        after.read_bytes - before.read_bytes,
        after.total_bytes - before.total_bytes,
    );
    assert!(
        taken / 2 < read && read < before.read_bytes,
        "{read} bytes were read for {taken}, and {} at first",
        before.read_bytes
    );
    smaller(&leader, &two).await;
    let second_two = crash(&second, &leader).await;

    let (head, mut stream) = begin(&leader, sampled_story(TOKENS), 5).await;
    let fourth = pod(2, "d").await;
    fourth
        .report_when("it has its weights", |report| {
            report.ranks[0].phase() == Phase::Connecting
        })
        .await;
    form_all(3, &[], &[(0, &leader, "a"), (1, &second, "b"), (2, &fourth, "d")]).await;
    assert_eq!(finish(head, &mut stream).await.unwrap(), reference);
    let three = serves(&leader, 3).await;
    assert!(
        three.lost.is_empty() && three.longest_sequence == 1024,
        "{three:?}"
    );
    let back = rank(&three);
    assert_eq!((back.pid, back.restarts), (before.pid, 0));
    assert_eq!(
        (back.total_bytes, back.read_bytes),
        (before.total_bytes, after.read_bytes)
    );
    let second = rank(&second.report_when("it serves", all_serve).await);
    assert_eq!(
        (second.pid, second.read_bytes),
        (second_two.pid, second_two.read_bytes)
    );
    assert_eq!(complete(&leader, sampled_story(TOKENS)).await.unwrap(), reference);
}

/// The context is told, and what does not fit it is refused so that it can be had elsewhere; an answer without a length fits.
async fn smaller(leader: &Worker, two: &PodReport) {
    assert!((512..1024).contains(&two.longest_sequence), "{two:?}");
    refused(leader, story(900), Code::Unavailable, "this group holds").await;
    let open = CompletionRequest {
        max_tokens: None,
        ..story(1)
    };
    drop(begin(leader, open, 1).await);
    let metrics = leader.get("/metrics").await.1;
    let longest = format!("llamero_longest_sequence_tokens {}", two.longest_sequence);
    for line in ["llamero_group_lost_ranks 1", &longest] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

/// A process that dies meanwhile comes back with the share that its rank has now, without reading.
async fn crash(second: &Worker, leader: &Worker) -> RankReport {
    let before = rank(&second.report_when("it serves", all_serve).await);
    send(before.pid, Signal::KILL);
    let after = second
        .report_when("it serves again", |report| {
            all_serve(report) && report.ranks[0].pid != before.pid
        })
        .await;
    let after = rank(&after);
    assert_eq!((after.total_bytes, after.read_bytes), (before.total_bytes, 0));
    serves(leader, 2).await;
    after
}

async fn refusals(leader: &Worker, second: &Worker) {
    let good = || members(2, &[2], &[(0, leader, "a"), (1, second, "b")]);
    for (lost, part) in [
        (&[][..], "of which 0 are lost"),
        (&[2, 2], "name each once"),
        (&[0], "rank 1 was due"),
        (&[1], "rank 2 was due"),
        (&[3], "rank 3 cannot be a lost one"),
    ] {
        let request = FormRequest {
            lost: lost.to_vec(),
            ..good()
        };
        let status = form(leader, &request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(part), "{lost:?}: {status}");
    }
}
