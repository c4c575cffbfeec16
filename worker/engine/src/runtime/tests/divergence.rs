//! Divergence that comes again in every era.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use super::group::{Group, LONG, Rank, greedy};
use crate::backend::BackendError;
use crate::mesh::{
    Abort, ControlLink, EraAbort, Frames, GroupKey, Inbox, LinkKind, Listener, Membership, Topology,
};
use crate::runtime::{Event, Outcome, Phase};
use crate::step::Era;

fn is_bug(ended: Result<Outcome, BackendError>, words: &str) {
    match ended {
        Err(BackendError::Bug(why)) => {
            assert!(why.contains("two eras within") && why.contains(words), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_member_finds_invalid_in_two_eras_in_a_row_is_a_bug() {
    for finder in [0, 1] {
        let mut group = Group::start(2);
        group.leader().wait_for(|state| state.phase == Phase::Serving);
        // Held, so that the answer is not finished before the ranks diverge.
        group.ranks[1].faults.stall(true);
        let (_submission, events) = group.leader().engine.submit_channel(greedy(&[6, 7], 60)).unwrap();
        group.ranks[finder].faults.diverge();
        group.ranks[1].faults.stall(false);
        let leader = group.ranks.remove(0);
        let control = leader.control.clone();
        is_bug(
            leader.ended(),
            "rank 0 sent an invalid frame: the check sum differs",
        );
        assert_eq!(control.state().era.epoch, 2);
        assert!(matches!(events.iter().last(), Some(Event::Failed { .. })));
    }
}

#[test]
fn what_cannot_be_read_in_two_eras_in_a_row_is_a_bug() {
    let leader = Rank::start(0, 2, LONG);
    let inbox = Arc::new(Inbox::new(
        1,
        Topology::tensor(2).into(),
        "test-v1".into(),
        "tiny".into(),
    ));
    inbox.set_ready(None);
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listener = Listener::start(socket, Arc::clone(&inbox)).unwrap();
    let membership = Membership {
        group_uid: "group".into(),
        generation: 1,
        lost: Vec::new(),
        addresses: Membership::in_rank_order([leader.address, listener.address()]),
        key: GroupKey::random().unwrap(),
    };
    assert_eq!(inbox.form(membership.clone()), Ok(true));
    // A member whose memory is broken: all it says is noise.
    let member = std::thread::spawn(move || {
        let mut over = Era::default();
        while over.epoch < 2 {
            inbox.wait_for_era(over, LONG);
            let era = inbox.latest();
            let abort = Arc::new(EraAbort::default());
            inbox.enter(era, Arc::clone(&abort));
            let mut links = Vec::new();
            while links.len() < 2 {
                inbox.wait_for_link(era, LONG);
                links.extend(inbox.take(era));
            }
            let plan = links.iter().position(|link| link.link == LinkKind::Plan).unwrap();
            let connection = links.remove(plan).connection;
            let plan = ControlLink::new(connection, 0, era, Arc::clone(&abort));
            plan.send_frames(&Frames::from(vec![vec![0xff; 64]]), LONG)
                .unwrap();
            over = era;
            if era.epoch < 2 {
                inbox.wait_for_era(over, LONG);
            }
            abort.abort();
        }
    });
    assert_eq!(leader.control.form(membership), Ok(true));
    is_bug(
        leader.ended(),
        "rank 1 sent an invalid frame: not a Llamero frame",
    );
    member.join().unwrap();
}
