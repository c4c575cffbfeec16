//! Strangers and impostors on the rank port.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use super::group::{Group, LONG, Rank, greedy, rest, token};
use super::model::reference;
use crate::mesh::dial::{DialError, dial};
use crate::mesh::frame::{HEADER, Header, Kind};
use crate::mesh::hello::{Hello, Identity, LinkKind, RefusalCode};
use crate::mesh::{GroupKey, Topology};
use crate::runtime::{Event, Phase};
use crate::sampling::SamplingParams;
use crate::step::Era;

fn hello(era: Era) -> Hello {
    let identity = Identity {
        group_uid: "group".into(),
        rank: 0,
        members: Topology::tensor(2).into(),
        numerics: "test-v1".into(),
        content: "tiny".into(),
    };
    identity.hello(era, 1, LinkKind::Plan)
}

fn refusal(rank: &Rank, hello: &Hello, key: &GroupKey) -> RefusalCode {
    match dial(rank.address, hello, key, LONG) {
        Err(DialError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn impostors_are_refused_and_the_stream_goes_on() {
    let mut group = Group::start(2);
    let former = group.key.clone();
    group.form();
    let (_submission, events) = group.leader().engine.submit_channel(greedy(&[2], 60)).unwrap();
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    let head = token(&events);
    let member = &group.ranks[1];
    let now = group.leader().control.state().era;
    let (early, next) = (
        Era { epoch: 0, ..now },
        Era {
            epoch: now.epoch + 1,
            ..now
        },
    );
    let stranger = dial(member.address, &hello(next), &GroupKey::random().unwrap(), LONG);
    assert!(
        matches!(stranger, Err(DialError::Unreachable { .. })),
        "{stranger:?}"
    );
    let (old, later) = (
        Era {
            generation: 1,
            epoch: 99,
        },
        Era {
            generation: 3,
            epoch: 1,
        },
    );
    assert_eq!(refusal(member, &hello(old), &former), RefusalCode::OldEra);
    let changed = |era, change: &dyn Fn(&mut Hello)| {
        let mut hello = hello(era);
        change(&mut hello);
        refusal(member, &hello, &group.key)
    };
    assert_eq!(changed(early, &|_| ()), RefusalCode::OldEra);
    assert_eq!(changed(later, &|_| ()), RefusalCode::OldEra);
    assert_eq!(
        changed(next, &|hello| hello.group_uid = "x".into()),
        RefusalCode::OtherGroup
    );
    assert_eq!(
        changed(next, &|hello| hello.numerics = "x".into()),
        RefusalCode::OtherNumerics
    );
    assert_eq!(
        changed(next, &|hello| hello.content = "x".into()),
        RefusalCode::OtherContent
    );
    assert_eq!(changed(next, &|hello| hello.to = 0), RefusalCode::WrongRank);
    assert_eq!(
        [vec![head], rest(&events).0].concat(),
        reference(&[2], &SamplingParams::greedy(), 60)
    );
    assert_eq!(group.leader().control.state().era, now, "no era was lost to them");
}

#[test]
fn garbage_is_closed_and_harms_nobody() {
    let group = Group::start(2);
    group.leader().wait_for(|state| state.phase == Phase::Serving);
    let era = group.leader().control.state().era;
    let absurd = Header {
        kind: Kind::Hello,
        era,
        step: 0,
        tag: 0,
        sequence: 0,
        length: u32::MAX,
    }
    .encode();
    let early = Header {
        kind: Kind::Control,
        era,
        step: 0,
        tag: 0,
        sequence: 0,
        length: 8,
    }
    .encode();
    let broken = [
        &Header {
            kind: Kind::Hello,
            era,
            step: 0,
            tag: 0,
            sequence: 0,
            length: 4,
        }
        .encode()[..],
        &[0xff; 4],
    ]
    .concat();
    let garbage: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: rank\r\nAccept: everything\r\n\r\n",
        &[0; 4096],
        &[0xff; HEADER],
        &absurd,
        &early,
        &broken,
    ];
    for bytes in garbage {
        for rank in &group.ranks {
            let mut stranger = TcpStream::connect(rank.address).unwrap();
            stranger.set_read_timeout(Some(LONG)).unwrap();
            // It may close before it has read everything, which is a failed write or read here.
            let _ = stranger.write_all(bytes);
            let _ = stranger.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stranger.read_to_end(&mut answer);
            assert_eq!(answer, [0; 0], "strangers are told nothing");
        }
    }
    let (_submission, events) = group.leader().engine.submit_channel(greedy(&[2], 10)).unwrap();
    assert_eq!(rest(&events).0, reference(&[2], &SamplingParams::greedy(), 10));
    assert_eq!(group.leader().control.state().era, era);
}
