//! Adapters come and go while a group serves, and no request is answered without its own.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use llamero_checkpoint::ContentIdentity;
use tempfile::TempDir;

use super::fake_adapters::{make, reference};
use super::group::{Group, LONG, Rank, config, greedy, in_step, read_on, rest, token};
use super::model;
use crate::mesh::Topology;
use crate::runtime::adapters::Adapters;
use crate::runtime::planner::Planner;
use crate::runtime::queue::QueueGauge;
use crate::runtime::{
    AdapterChoice, AdapterError, AdapterInfo, EngineHandle, Event, FailureKind, GenerationRequest, Phase,
    RankConfig,
};
use crate::sampling::SamplingParams;
use crate::step::Era;

fn with_adapters(folder: &Path, rank: u32) -> RankConfig {
    RankConfig {
        max_adapters: 2,
        max_adapter_rank: 8,
        adapter_folder: folder.to_path_buf(),
        ..config(rank, 3, LONG)
    }
}

/// Three ranks, and adapters `a`, `b` and `c` with salts 1, 2 and 3.
fn group() -> (Group, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for (name, salt) in [("a", 1), ("b", 2), ("c", 3)] {
        make(folder.path(), name, salt);
    }
    let group = Group::of(3, |rank| with_adapters(folder.path(), rank));
    for rank in &group.ranks {
        rank.wait_for(|state| state.phase == Phase::Serving);
    }
    (group, folder)
}

fn load(engine: &EngineHandle, name: &str, path: &str) -> Result<AdapterInfo, AdapterError> {
    let (sender, receiver) = mpsc::channel();
    let reply = Box::new(move |end| sender.send(end).unwrap());
    engine.load_adapter(name.into(), path.into(), reply);
    receiver.recv_timeout(LONG).unwrap()
}

fn unload(engine: &EngineHandle, name: &str) -> Result<AdapterInfo, AdapterError> {
    let (sender, receiver) = mpsc::channel();
    let reply = Box::new(move |end| sender.send(end).unwrap());
    engine.unload_adapter(name.into(), reply);
    receiver.recv_timeout(LONG).unwrap()
}

fn asks(info: &AdapterInfo, prompt: &[u32], tokens: u32) -> GenerationRequest {
    GenerationRequest {
        adapter: Some(AdapterChoice {
            name: info.name.clone(),
            identity: info.identity,
        }),
        ..greedy(prompt, tokens)
    }
}

fn plain(prompt: &[u32], tokens: usize) -> Vec<u32> {
    model::reference(prompt, &SamplingParams::greedy(), tokens)
}

#[test]
fn several_adapters_answer_side_by_side_and_beside_none() {
    let (group, _folder) = group();
    let engine = &group.leader().engine;
    let a = load(engine, "first", "a").unwrap();
    let b = load(engine, "second", "b").unwrap();
    assert_eq!(engine.adapters(), [a.clone(), b.clone()]);
    // One prompt for all, long enough to be found in the cache by whoever may: nobody finds what another one computed.
    let prompt: Vec<u32> = (0..20).collect();
    for _ in 0..2 {
        let requests = [greedy(&prompt, 30), asks(&a, &prompt, 30), asks(&b, &prompt, 30)];
        let streams = requests.map(|request| engine.submit_channel(request).unwrap());
        let tokens = streams.map(|(submission, events)| {
            let (tokens, _) = rest(&events);
            drop(submission);
            tokens
        });
        assert_eq!(tokens[0], plain(&prompt, 30));
        assert_eq!(tokens[1], reference(&prompt, 1, 30));
        assert_eq!(tokens[2], reference(&prompt, 2, 30));
    }
}

#[test]
fn an_adapter_in_use_stays_and_one_that_went_is_not_replaced_by_the_model() {
    let (group, _folder) = group();
    let engine = &group.leader().engine;
    let a = load(engine, "first", "a").unwrap();
    group.ranks[1].faults.stall(true);
    let (submission, events) = engine.submit_channel(asks(&a, &[1, 2], 60)).unwrap();
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    assert!(matches!(
        unload(engine, "first"),
        Err(AdapterError::InUse { requests: 1, .. })
    ));
    submission.cancel();
    group.ranks[1].faults.stall(false);
    rest(&events);
    assert_eq!(unload(engine, "first").unwrap(), a);
    assert_eq!(engine.adapters(), []);
    assert_eq!(
        unload(engine, "first"),
        Err(AdapterError::Unknown("first".into()))
    );
    let refused = |request| {
        let (_submission, events) = engine.submit_channel(request).unwrap();
        events.recv_timeout(LONG).unwrap()
    };
    let is_refused = |event: Event| {
        matches!(
            event,
            Event::Failed {
                kind: FailureKind::NoAdapter,
                ..
            }
        )
    };
    assert!(is_refused(refused(asks(&a, &[1, 2], 5))));
    // Another one has taken the name.
    let b = load(engine, "first", "b").unwrap();
    assert!(is_refused(refused(asks(&a, &[1, 2], 5))));
    let (_submission, events) = engine.submit_channel(asks(&b, &[1, 2], 5)).unwrap();
    assert_eq!(rest(&events).0, reference(&[1, 2], 2, 5));
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let (group, folder) = group();
    let engine = &group.leader().engine;
    for (name, path, part) in [
        ("", "a", "letters"),
        ("x y", "a", "letters"),
        ("x", "", "relative"),
        ("x", "/etc", "relative"),
        ("x", "../x", "relative"),
        ("x", "a/../b", "relative"),
        ("x", "nowhere", "cannot open"),
    ] {
        let error = load(engine, name, path).unwrap_err().to_string();
        assert!(error.contains(part), "{name} {path}: {error}");
    }
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
    let error = load(engine, "x", "link").unwrap_err().to_string();
    assert!(error.contains("leads out"), "{error}");
    std::fs::write(folder.path().join("c/salt"), "sand").unwrap();
    let error = load(engine, "x", "c").unwrap_err().to_string();
    assert!(error.contains("no salt"), "{error}");
    assert_eq!(engine.adapters(), []);
    load(engine, "first", "a").unwrap();
    assert_eq!(
        load(engine, "first", "b"),
        Err(AdapterError::Taken("first".into()))
    );
    load(engine, "second", "b").unwrap();
    assert_eq!(load(engine, "third", "b"), Err(AdapterError::Full(2)));
}

/// One rank refuses at once, and the others hear of that before they have read the adapter: they keep nothing of it.
#[test]
fn what_is_given_up_while_it_is_read_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    make(&folder.path().join("full"), "a", 1);
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let group = Group::of(3, |rank| {
        let below = if rank == 0 { "empty" } else { "full" };
        with_adapters(&folder.path().join(below), rank)
    });
    group.leader().wait_for(|state| state.phase == Phase::Serving);
    let others = &group.ranks[1..];
    for rank in others {
        rank.faults.adapters.hold_until_unloaded();
    }
    let error = load(&group.leader().engine, "first", "a").unwrap_err();
    assert!(matches!(error, AdapterError::Refused { rank: 0, .. }), "{error}");
    for rank in others {
        assert_eq!(rank.faults.adapters.settled(), [0; 0]);
    }
}

/// A load may be taken together with the word that the last rank is ready, just before the era begins.
#[test]
fn a_load_that_was_taken_as_the_era_began_goes_on() {
    let limits = config(0, 1, LONG).limits(10);
    let adapters = Adapters::new(1, Topology::tensor(1).into(), Arc::default());
    let mut planner = Planner::new(
        limits,
        2,
        LONG,
        Arc::default(),
        Arc::new(QueueGauge::new(1, 100)),
        None,
    )
    .with_adapters(adapters);
    let source = planner.adapters_mut().number("first".into(), "a".into()).unwrap();
    let number = source.number;
    let (sender, receiver) = mpsc::channel();
    let reply = Box::new(move |end| sender.send(end).unwrap());
    planner.adapters_mut().begin(source, Instant::now() + LONG, reply);
    planner.enter(Era::default(), limits, None);
    assert!(receiver.try_recv().is_err(), "given up, and no rank is told");
    let identity = "0".repeat(64).parse().unwrap();
    assert_eq!(planner.adapters_mut().answered(0, number, Ok(identity)), None);
    assert_eq!(receiver.try_recv().unwrap().unwrap().number, number);
}

#[test]
fn a_stream_with_an_adapter_goes_on_when_a_rank_was_replaced() {
    let (mut group, folder) = group();
    let engine = group.leader().engine.clone();
    let a = load(&engine, "first", "a").unwrap();
    for cut in [true, false] {
        let (_submission, events) = in_step(&engine, asks(&a, &[6, 7], 60));
        assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
        let head: Vec<u32> = (0..5).map(|_| token(&events)).collect();
        let reading = if cut {
            group.ranks[1].faults.cut();
            read_on(events)
        } else {
            // A new process, which has read nothing yet.
            let lost = group.ranks.pop().unwrap();
            lost.control.stop();
            lost.outcome();
            let reading = read_on(events);
            group.leader().wait_for(|state| state.phase == Phase::Connecting);
            group.ranks.push(Rank::start_with(
                with_adapters(folder.path(), 2),
                std::sync::Arc::default(),
            ));
            group.form();
            reading
        };
        assert_eq!(
            [head, reading.join().unwrap().0].concat(),
            reference(&[6, 7], 1, 60)
        );
    }
    assert_eq!(engine.adapters(), [a]);
}

#[test]
fn a_rank_without_the_adapter_fails_its_requests_and_no_others() {
    let (mut group, folder) = group();
    let engine = group.leader().engine.clone();
    let a = load(&engine, "first", "a").unwrap();
    let b = load(&engine, "second", "b").unwrap();
    let streams = [asks(&a, &[6, 7], 60), asks(&b, &[6, 7], 60)].map(|request| {
        let (submission, events) = in_step(&engine, request);
        assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
        (submission, events)
    });
    let heads = streams.each_ref().map(|(_, events)| token(events));
    let lost = group.ranks.pop().unwrap();
    lost.control.stop();
    lost.outcome();
    std::fs::write(folder.path().join("a/salt"), "9").unwrap();
    let [(_first, of_a), (_second, of_b)] = streams;
    let failing = std::thread::spawn(move || {
        loop {
            match of_a.recv_timeout(LONG).unwrap() {
                Event::Failed { kind, message } => return (kind, message),
                Event::Finished { .. } => panic!("answered without its adapter"),
                _ => {}
            }
        }
    });
    let reading = read_on(of_b);
    group.ranks.push(Rank::start_with(
        with_adapters(folder.path(), 2),
        std::sync::Arc::default(),
    ));
    group.form();
    let (kind, message) = failing.join().unwrap();
    assert_eq!(kind, FailureKind::Unavailable);
    assert!(message.contains("rank 2: another content"), "{message}");
    assert_eq!(
        [vec![heads[1]], reading.join().unwrap().0].concat(),
        reference(&[6, 7], 2, 60)
    );
    assert_eq!(engine.adapters(), [b]);
}

#[test]
fn adapters_of_the_start_are_there_with_the_first_request() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), "a", 1);
    let group = Group::of(3, |rank| RankConfig {
        adapters: vec![("first".into(), "a".into())],
        ..with_adapters(folder.path(), rank)
    });
    group.leader().wait_for(|state| state.phase == Phase::Serving);
    let engine = &group.leader().engine;
    let [a] = engine.adapters().try_into().unwrap();
    let (_submission, events) = engine.submit_channel(asks(&a, &[3], 9)).unwrap();
    assert_eq!(rest(&events).0, reference(&[3], 1, 9));

    let broken = RankConfig {
        adapters: vec![("first".into(), "b".into())],
        ..with_adapters(folder.path(), 0)
    };
    let error = Rank::start_with(broken, std::sync::Arc::default())
        .ended()
        .unwrap_err();
    assert!(error.to_string().contains("adapter first"), "{error}");
}

/// Without room for adapters there are none, whatever is asked.
#[test]
fn a_group_without_room_for_adapters_says_so() {
    let group = Group::start(1);
    let engine = &group.leader().engine;
    group.leader().wait_for(|state| state.phase == Phase::Serving);
    assert_eq!(load(engine, "first", "a"), Err(AdapterError::Off));
    let nobody = AdapterInfo {
        number: 1,
        name: "first".into(),
        path: "a".into(),
        identity: "0".repeat(64).parse::<ContentIdentity>().unwrap(),
    };
    let (_submission, events) = engine.submit_channel(asks(&nobody, &[1], 5)).unwrap();
    let event = events.recv_timeout(LONG).unwrap();
    assert!(
        matches!(
            event,
            Event::Failed {
                kind: FailureKind::NoAdapter,
                ..
            }
        ),
        "{event:?}"
    );
}
