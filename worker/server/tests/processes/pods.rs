//! Pods of one group, formed from outside as the operator does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use llamero_proto::v1::{DrainRequest, FormRequest, FormResponse, Member, Phase, PodReport};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status};

use crate::harness::{Whole, Worker, all_serve, begin, complete, finish, sampled_story, send, turn};

async fn pod(member: u32, uid: &str) -> Worker {
    pod_with(member, uid, &[]).await
}

/// The same with more arguments.
pub(crate) async fn pod_with(member: u32, uid: &str, more: &[&str]) -> Worker {
    let member = member.to_string();
    let group = ["--group-uid", "group", "--tensor", "2", "--ranks-per-pod", "1"];
    let own = ["--member", &member, "--pod-uid", uid, "--drain-grace", "100ms"];
    // On loopback all pods seem to be one, and what is between them is to be TCP.
    let apart = ["--shared-memory", "false"];
    Worker::start(&[&group[..], &own, &apart, more].concat()).await
}

pub(crate) fn members(generation: u64, pods: [(&Worker, &str); 2]) -> FormRequest {
    let member = |(rank, (worker, uid)): (u32, (&Worker, &str))| Member {
        rank,
        pod_uid: uid.into(),
        ip: "127.0.0.1".into(),
        port: worker.ports.ranks[0].into(),
    };
    FormRequest {
        group_uid: "group".into(),
        generation,
        members: (0..).zip(pods).map(member).collect(),
        // One for each generation.
        key: vec![generation as u8; 32],
        lost: Vec::new(),
    }
}

pub(crate) async fn form(worker: &Worker, request: &FormRequest) -> Result<FormResponse, Status> {
    worker
        .control()
        .form(request.clone())
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn pods_form_lose_members_take_others_and_leave() {
    let _turn = turn().await;
    let leader = pod(0, "a").await;
    let first = pod(1, "b").await;
    form_first(&leader, &first).await;
    let reference = complete(&leader, sampled_story(120)).await.unwrap();
    let second = replace_member(&leader, first, &reference).await;
    let leader = replace_leader(leader, &second, &reference).await;
    leave(leader, second, &reference).await;
}

async fn form_first(leader: &Worker, first: &Worker) {
    assert_eq!(
        (leader.ports.inference.is_some(), first.ports.inference),
        (true, None)
    );
    assert_eq!(leader.get("/readyz").await.0, 503);

    let two = members(2, [(leader, "a"), (first, "b")]);
    for worker in [leader, first] {
        assert_eq!(form(worker, &two).await.unwrap().generation, 2);
        assert_eq!(
            form(worker, &two).await.unwrap().generation,
            2,
            "the same again changes nothing"
        );
    }
    leader
        .report_when("the group serves", |report| report.group_serving)
        .await;
    first.report_when("the member serves", all_serve).await;
    leader.wait_for_ready().await;
    first.wait_for_ready().await;
    refusals(leader, first).await;
    let about = |report: PodReport| {
        let rank = report.ranks[0].clone();
        assert!(rank.still_millis.is_some(), "{rank:?}");
        (rank.content_identity, rank.numerics)
    };
    let ours = about(leader.report().await);
    assert_eq!(ours, about(first.report().await));
    assert!(!ours.0.is_empty() && ours.1.contains("kv-bf16"), "{ours:?}");
}

/// The member's pod is lost in the middle of an answer; another one takes its place.
async fn replace_member(leader: &Worker, first: Worker, reference: &Whole) -> Worker {
    leader
        .report_when("layers are counted", |report| report.ranks[0].layers > 0)
        .await;
    let before = leader.report().await.ranks[0].clone();
    let (whole, mut stream) = begin(leader, sampled_story(120), 10).await;
    drop(first);
    let reading = tokio::spawn(async move { finish(whole, &mut stream).await });
    leader
        .report_when("the member is lost", |report| {
            report.ranks[0].phase() == Phase::Connecting
        })
        .await;
    assert!(!reading.is_finished(), "the answer is too short to disturb it");
    let second = pod(1, "c").await;
    let three = members(3, [(leader, "a"), (&second, "c")]);
    for worker in [leader, &second] {
        assert_eq!(form(worker, &three).await.unwrap().generation, 3);
    }
    assert_eq!(reading.await.unwrap().unwrap(), *reference);
    let after = leader
        .report_when("the group serves again", |report| {
            report.group_serving && report.ranks[0].generation == 3
        })
        .await;
    assert_eq!((after.ranks[0].pid, after.ranks[0].restarts), (before.pid, 0));
    assert_eq!(after.ranks[0].loaded_bytes, before.loaded_bytes);
    second
}

/// The leader's pod is told to stop: it finishes its answer, and the member keeps its weights for the next leader.
async fn replace_leader(mut leader: Worker, second: &Worker, reference: &Whole) -> Worker {
    let before = second.report().await.ranks[0].clone();
    let (whole, mut stream) = begin(&leader, sampled_story(120), 10).await;
    // Without the member the answer does not go on, so that it is not finished before the leader is told.
    send(before.pid, Signal::STOP);
    leader.signal(Signal::TERM);
    leader
        .report_when("it finishes what runs", |report| {
            report.ranks[0].phase() == Phase::Draining
        })
        .await;
    send(before.pid, Signal::CONT);
    assert_eq!(finish(whole, &mut stream).await.unwrap(), *reference);
    assert_eq!(leader.exit().await.code(), Some(0));
    let leader = pod(0, "d").await;
    let four = members(4, [(&leader, "d"), (second, "c")]);
    for worker in [&leader, second] {
        assert_eq!(form(worker, &four).await.unwrap().generation, 4);
    }
    leader.wait_for_ready().await;
    let after = second.report_when("the member serves again", all_serve).await;
    assert_eq!((after.ranks[0].pid, after.ranks[0].restarts), (before.pid, 0));
    assert_eq!(after.ranks[0].read_bytes, before.read_bytes);
    leader
}

/// A member ignores SIGTERM while its group serves, and goes when the leader goes.
async fn leave(mut leader: Worker, mut second: Worker, reference: &Whole) {
    let status = second.control().drain(DrainRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    second.signal(Signal::TERM);
    assert_eq!(complete(&leader, sampled_story(120)).await.unwrap(), *reference);
    assert!(second.is_running());
    leader.control().drain(DrainRequest {}).await.unwrap();
    assert_eq!(leader.exit().await.code(), Some(0));
    assert_eq!(second.exit().await.code(), Some(0));
}

async fn refusals(leader: &Worker, first: &Worker) {
    let good = members(3, [(leader, "a"), (first, "b")]);
    let refused = async |request: FormRequest, code, part: &str| {
        let status = form(leader, &request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(
            status.message().contains(part),
            "{:?} does not say {part:?}",
            status.message()
        );
    };
    let old = FormRequest {
        generation: 1,
        ..good.clone()
    };
    refused(old, Code::FailedPrecondition, "generation 1 is over").await;
    let changed = members(2, [(leader, "a"), (first, "other")]);
    refused(changed, Code::FailedPrecondition, "higher generation").await;
    let foreign = FormRequest {
        group_uid: "other".into(),
        ..good.clone()
    };
    refused(foreign, Code::InvalidArgument, "belongs to the group").await;
    let mut few = good.clone();
    few.members.pop();
    refused(few, Code::InvalidArgument, "2 ranks").await;
    let mut swapped = good.clone();
    swapped.members.swap(0, 1);
    refused(swapped, Code::InvalidArgument, "in order").await;
    let mut nowhere = good.clone();
    nowhere.members[1].ip = "somewhere".into();
    refused(nowhere, Code::InvalidArgument, "no IP address").await;
    let mut keyless = good.clone();
    keyless.key.clear();
    refused(keyless, Code::InvalidArgument, "send 32 random ones").await;
    let mut rekeyed = members(2, [(leader, "a"), (first, "b")]);
    rekeyed.key[0] ^= 1;
    refused(rekeyed, Code::FailedPrecondition, "another key").await;
    let elsewhere = members(3, [(leader, "z"), (first, "b")]);
    refused(elsewhere, Code::InvalidArgument, "lives in the pod").await;
    assert_eq!(leader.report().await.generation, 2);
}

/// Somebody between two ranks, who passes on what they say, and changes a bit when told to.
struct Between {
    port: u16,
    /// Bytes until a bit is changed; 0: none is.
    until_change: Arc<AtomicU64>,
}

impl Between {
    async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let between = Self {
            port: listener.local_addr().unwrap().port(),
            until_change: Arc::default(),
        };
        let until_change = Arc::clone(&between.until_change);
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                // Both have gone away when the rank behind is not there.
                let Ok(to) = TcpStream::connect(("127.0.0.1", port)).await else {
                    continue;
                };
                let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
                tokio::spawn(pass_on(from_read, to_write, Arc::clone(&until_change)));
                tokio::spawn(pass_on(to_read, from_write, Arc::clone(&until_change)));
            }
        });
        between
    }
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    until_change: Arc<AtomicU64>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count) = from.read(&mut bytes).await {
        if count == 0 {
            return;
        }
        let left = until_change.load(Ordering::Relaxed);
        if left > 0 {
            until_change.store(left.saturating_sub(count as u64), Ordering::Relaxed);
            if left <= count as u64 {
                bytes[left as usize - 1] ^= 4;
            }
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// What is changed on the way between ranks ends an era, as a lost connection does, and never becomes part of an answer.
#[tokio::test]
async fn a_bit_changed_between_ranks_costs_an_era_and_no_token() {
    let _turn = turn().await;
    let (leader, member) = (pod(0, "a").await, pod(1, "b").await);
    let between = Between::start(member.ports.ranks[0]).await;
    let mut two = members(2, [(&leader, "a"), (&member, "b")]);
    two.members[1].port = between.port.into();
    form(&leader, &two).await.unwrap();
    // The member finds itself where it listens.
    two.members[1].port = member.ports.ranks[0].into();
    form(&member, &two).await.unwrap();
    leader
        .report_when("the group serves", |report| report.group_serving)
        .await;
    let reference = complete(&leader, sampled_story(120)).await.unwrap();
    // Some place in a header, an activation, a plan or an answer of the next steps.
    for bytes in [1, 1000, 100_000] {
        let before = leader.report().await.ranks[0].clone();
        let (whole, mut stream) = begin(&leader, sampled_story(120), 10).await;
        between.until_change.store(bytes, Ordering::Relaxed);
        assert_eq!(
            finish(whole, &mut stream).await.unwrap(),
            reference,
            "bit after {bytes} bytes"
        );
        assert_eq!(
            between.until_change.load(Ordering::Relaxed),
            0,
            "nothing was changed"
        );
        let after = leader
            .report_when("another era serves", |report| {
                report.group_serving && report.ranks[0].epoch > before.epoch
            })
            .await;
        assert_eq!((after.ranks[0].pid, after.ranks[0].restarts), (before.pid, 0));
    }
    // No rank took it for a mistake of its own and ended.
    let restarts = member.report().await.ranks[0].restarts;
    assert_eq!(restarts, 0);
}
