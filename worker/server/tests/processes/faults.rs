//! Ranks that die, hang, or hear nonsense.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use llamero_engine::Era;
use llamero_engine::mesh::dial::dial;
use llamero_engine::mesh::frame::{Header, Kind};
use llamero_engine::mesh::{GroupKey, Identity, LinkKind, Members, Topology};
use llamero_proto::v1::{Phase, PodReport, RankReport};
use rustix::process::Signal;

use crate::harness::{Worker, all_serve, begin, complete, exists, finish, sampled_story, send, turn};

#[tokio::test]
async fn a_killed_rank_costs_no_token_and_no_byte() {
    let _turn = turn().await;
    let started = Instant::now();
    let worker = Worker::alone(3, &[]).await;
    let start = started.elapsed();
    let reference = complete(&worker, sampled_story(160)).await.unwrap();
    let before = worker.report_when("all serve", all_serve).await;
    // Ranks of a pod read for each other, so this holds for all of them together; scales of rows that they share are read
    // once and held by each.
    let sum = |of: fn(&RankReport) -> u64| before.ranks.iter().map(of).sum::<u64>();
    let (read, total) = (sum(|rank| rank.read_bytes), sum(|rank| rank.total_bytes));
    assert!(
        total > 0 && read * 100 >= total * 99,
        "{read} bytes were read for {total}"
    );
    assert!(
        before
            .ranks
            .iter()
            .all(|rank| rank.loaded_bytes == rank.total_bytes)
    );

    let (whole, mut stream) = begin(&worker, sampled_story(160), 10).await;
    let killed = Instant::now();
    send(before.ranks[1].pid, Signal::KILL);
    let reading = tokio::spawn(async move { finish(whole, &mut stream).await });
    worker
        .report_when("the rank is lost", |report| {
            let rank = &report.ranks[1];
            rank.pid != before.ranks[1].pid || rank.phase() != Phase::Serving
        })
        .await;
    let after = worker
        .report_when("the rank serves again", |report| {
            report.ranks[1].restarts == 1 && all_serve(report)
        })
        .await;
    let back = killed.elapsed();
    assert_eq!(reading.await.unwrap().unwrap(), reference);

    println!("back after {back:?}, all started in {start:?}");
    // It reads nothing again, so on a slow machine it takes no longer than the start did.
    assert!(
        back < start.max(Duration::from_secs(10)),
        "back only after {back:?}, all started in {start:?}"
    );
    for rank in [0, 2] {
        let (before, after) = (&before.ranks[rank], &after.ranks[rank]);
        assert_eq!(
            (before.pid, before.restarts, before.loaded_bytes),
            (after.pid, 0, after.loaded_bytes)
        );
    }
    let restarted = &after.ranks[1];
    assert_eq!(
        (restarted.read_bytes, restarted.loaded_bytes),
        (0, before.ranks[1].loaded_bytes)
    );
    assert_ne!(restarted.pid, before.ranks[1].pid);
    assert_eq!(restarted.last_exit.as_ref().and_then(|exit| exit.signal), Some(9));
    assert_eq!(
        (after.generation, after.ranks[0].generation),
        (before.generation, before.generation)
    );
    assert!(after.ranks[0].epoch > before.ranks[0].epoch);
    assert_eq!(complete(&worker, sampled_story(160)).await.unwrap(), reference);
}

#[tokio::test]
async fn a_rank_killed_while_it_loads_leaves_all_weights_whole() {
    let _turn = turn().await;
    let reference = complete(&Worker::alone(1, &[]).await, sampled_story(40))
        .await
        .unwrap();
    let worker = Worker::start(&["--tensor", "3", "--threads", "1"]).await;
    let loading = worker
        .report_when("rank 1 loads", |report| {
            let rank = &report.ranks[1];
            rank.pid != 0 && rank.phase() != Phase::Preflight
        })
        .await;
    send(loading.ranks[1].pid, Signal::KILL);
    let after = worker
        .report_when("all serve", |report| {
            report.ranks[1].restarts == 1 && all_serve(report)
        })
        .await;
    assert!(
        after
            .ranks
            .iter()
            .all(|rank| rank.loaded_bytes == rank.total_bytes),
        "{after:?}"
    );
    assert_eq!((after.ranks[0].restarts, after.ranks[2].restarts), (0, 0));
    println!(
        "killed with {} of {} bytes in memory",
        loading.ranks[1].loaded_bytes, loading.ranks[1].total_bytes
    );
    worker.wait_for_health(true).await;
    assert_eq!(complete(&worker, sampled_story(40)).await.unwrap(), reference);
}

#[tokio::test]
async fn health_is_the_whole_groups() {
    let _turn = turn().await;
    let worker = Worker::alone(2, &["--stall-timeout", "5s"]).await;
    worker.wait_for_ready().await;
    let stuck = worker.report().await.ranks[1].pid;
    send(stuck, Signal::STOP);
    worker.wait_for_health(false).await;
    let report = worker
        .report_when("the group is down", |report| !report.group_serving)
        .await;
    let (code, why) = worker.get("/readyz").await;
    assert_eq!(code, 503, "{why}");
    assert_eq!(worker.get("/livez").await.0, 200);
    assert!(
        report.ranks[1].entered <= report.ranks[0].entered,
        "the stuck rank does not show: {report:?}"
    );
    assert!(worker.get("/metrics").await.1.contains("llamero_group_serving 0"));

    send(stuck, Signal::CONT);
    worker.wait_for_health(true).await;
    worker
        .report_when("the group is back", |report| report.group_serving)
        .await;
    assert!(complete(&worker, sampled_story(8)).await.is_ok());
}

#[tokio::test]
async fn strangers_on_a_rank_port_disturb_nobody() {
    let _turn = turn().await;
    let worker = Worker::alone(2, &[]).await;
    let reference = complete(&worker, sampled_story(96)).await.unwrap();
    let before = worker.report().await;
    let (whole, mut stream) = begin(&worker, sampled_story(96), 5).await;
    let mut talkers = Vec::new();
    for port in &worker.ports.ranks {
        for noise in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            &[0xff; 4096],
            &[0; 64],
            b"",
        ] {
            let mut talker = TcpStream::connect(("127.0.0.1", *port)).unwrap();
            // The rank may close while we still talk.
            let _ = talker.write_all(noise);
            talkers.push(talker);
        }
    }
    for (rank, port) in (0..).zip(&worker.ports.ranks) {
        dial_with_another_key(rank, *port, &before);
    }
    assert_eq!(finish(whole, &mut stream).await.unwrap(), reference);
    let after = worker.report().await;
    for (before, after) in before.ranks.iter().zip(&after.ranks) {
        assert_eq!((before.pid, before.epoch), (after.pid, after.epoch));
    }
}

/// Begins the handshake with another key, and goes on to later eras without waiting for a challenge.
fn dial_with_another_key(to: u32, port: u16, group: &PodReport) {
    const SOON: Duration = Duration::from_secs(30);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stranger = Identity {
        group_uid: "group".to_owned(),
        rank: 1 - to,
        members: Members::new(Topology::tensor(2), &[]).unwrap(),
        numerics: "cpu-dpbf16-v1 kv-bf16 adapters-0".to_owned(),
        content: "content".to_owned(),
    };
    let epoch = group.ranks[0].epoch;
    let era = |generation, epoch| Era { generation, epoch };
    let eras = [era(group.generation, epoch + 1), era(group.generation + 1, 1)];
    // Whoever is answered by a challenge is told otherwise: the rank does not know this key.
    let hello = stranger.hello(eras[0], to, LinkKind::Plan);
    let dialled = dial(address, &hello, &GroupKey::random().unwrap(), SOON);
    let error = dialled.unwrap_err().to_string();
    assert!(error.contains("it closed the connection"), "{error}");
    for era in eras {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(&unanswered(era)).unwrap();
        let mut heard = Vec::new();
        // What it does not read before it closes makes a reset of the end.
        if let Err(error) = stream.read_to_end(&mut heard) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        assert!(heard.is_empty(), "{heard:?}");
    }
}

/// An opening, and a Hello for an era behind it; proofs are bytes that no key makes.
fn unanswered(era: Era) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A number and its proof; a text of 64 bytes, behind its length, and its proof.
    for (kind, payload) in [
        (Kind::Opening, vec![7_u8; 64]),
        (Kind::Hello, [vec![64_u8], vec![7_u8; 96]].concat()),
    ] {
        let length = u32::try_from(payload.len()).unwrap();
        let header = Header {
            length,
            ..Header::of(kind, era, 0)
        };
        bytes.extend(header.encode());
        bytes.extend(payload);
    }
    bytes
}

#[tokio::test]
async fn ranks_do_not_outlive_their_supervisor() {
    let _turn = turn().await;
    let mut worker = Worker::alone(2, &[]).await;
    let pids: Vec<u32> = worker.report().await.ranks.iter().map(|rank| rank.pid).collect();
    assert!(pids.iter().all(|pid| exists(*pid)));
    worker.signal(Signal::KILL);
    worker.exit().await;
    crate::harness::until("the ranks end", async || {
        pids.iter().all(|pid| !exists(*pid)).then_some(())
    })
    .await;
}

/// Reports that nobody read any more once made the end of the link an error, and telling it, on a standard error that nobody
/// read either, a panic.
#[tokio::test]
async fn ranks_end_with_a_supervisor_that_had_not_read_their_reports() {
    let _turn = turn().await;
    let mut worker = Worker::alone(2, &[]).await;
    let pids: Vec<u32> = worker.report().await.ranks.iter().map(|rank| rank.pid).collect();
    worker.signal(Signal::STOP);
    complete(&worker, sampled_story(8)).await.unwrap();
    worker.signal(Signal::KILL);
    worker.exit().await;
    crate::harness::until("the ranks end", async || {
        pids.iter().all(|pid| !exists(*pid)).then_some(())
    })
    .await;
}
