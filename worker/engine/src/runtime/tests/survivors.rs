//! Groups that do without some of their ranks.

use super::group::{Group, LONG, Rank, config, greedy, in_step, rest, token};
use super::model::reference;
use crate::mesh::{GroupKey, Inbox, Members, Membership, Topology};
use crate::runtime::{Event, Phase, RankConfig};
use crate::sampling::SamplingParams;

fn members(lost: &[u32]) -> Members {
    Members::new(Topology::tensor(4), lost).unwrap()
}

fn group(lost: &[u32]) -> Group {
    Group::of_members(&members(lost), |rank| config(rank, 4, LONG))
}

/// Wide, so that full rows are fetched from everybody.
fn wide() -> SamplingParams {
    SamplingParams {
        top_p: 0.9,
        temperature: 3.0,
        seed: 6,
        ..SamplingParams::greedy()
    }
}

#[test]
fn survivors_give_the_tokens_of_the_whole_group() {
    for lost in [&[][..], &[3], &[1], &[1, 2], &[3, 1]] {
        let group = group(lost);
        for sampling in [SamplingParams::greedy(), wide()] {
            let mut request = greedy(&[4, 5, 6], 30);
            request.sampling = sampling.clone();
            let (_submission, events) = group.leader().engine.submit_channel(request).unwrap();
            assert_eq!(
                rest(&events).0,
                reference(&[4, 5, 6], &sampling, 30),
                "without {lost:?}"
            );
        }
        assert!(group.ranks.iter().all(|rank| rank.faults.full_rows() > 0));
    }
}

#[test]
fn survivors_find_each_other_again() {
    let group = group(&[2]);
    let (_submission, events) = in_step(&group.leader().engine, greedy(&[6, 7], 60));
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    let head = token(&events);
    group.ranks[2].faults.cut();
    assert_eq!(
        [vec![head], rest(&events).0].concat(),
        reference(&[6, 7], &SamplingParams::greedy(), 60)
    );
    for rank in &group.ranks {
        rank.wait_for(|state| state.era.epoch > 1 && state.phase == Phase::Serving);
    }
}

#[test]
fn a_rank_keeps_to_the_members_it_was_started_for() {
    let group = group(&[1, 2]);
    let told = |change: &dyn Fn(&mut Membership)| {
        let mut membership = Membership {
            generation: 9,
            ..group.membership()
        };
        change(&mut membership);
        group.leader().control.form(membership).unwrap_err()
    };
    for lost in [vec![], vec![1], vec![2, 1]] {
        let why = told(&|membership| membership.lost.clone_from(&lost));
        assert!(
            why.contains("started for tensor 4 without ranks 1, 2") && why.contains("start it again"),
            "{why}"
        );
    }
    let why = told(&|membership| {
        membership.addresses.remove(&3);
    });
    assert!(
        why.contains("name the address of each of the ranks [0, 3]"),
        "{why}"
    );
}

#[test]
fn members_that_disagree_about_the_losses_refuse_each_other() {
    let with = |rank: u32, lost: &[u32]| {
        let config = RankConfig {
            members: members(lost),
            ..config(rank, 4, LONG)
        };
        Rank::start_with(config, std::sync::Arc::default())
    };
    // Both do without ranks 1 and 2, which were lost in another order, so that the shares of the two do not fit.
    let mut group = group(&[1, 2]);
    group.ranks[1] = with(3, &[2, 1]);
    group.generation += 1;
    let told = |lost: &[u32]| Membership {
        lost: lost.to_vec(),
        ..group.membership()
    };
    assert_eq!(group.ranks[1].control.form(told(&[2, 1])), Ok(true));
    assert_eq!(group.ranks[0].control.form(told(&[1, 2])), Ok(true));
    let leader = group.ranks.remove(0);
    match leader.ended() {
        Err(error) => assert!(
            error.to_string().contains(
                "rank 0 takes [1, 2] for the ranks that the group has lost and rank 3 takes [2, 1]"
            ),
            "{error}"
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rank_that_can_change_its_share_takes_any_members_that_can_be() {
    let inbox = Inbox::new(2, Topology::tensor(4).into(), "n".into(), "c".into());
    let inbox = inbox.with_changing_members(true);
    let told = |generation, lost: &[u32], ranks: &[u32]| {
        let address = |rank: &u32| (*rank, ([127, 0, 0, 1], 7000).into());
        inbox.form(Membership {
            group_uid: "g".into(),
            generation,
            lost: lost.to_vec(),
            addresses: ranks.iter().map(address).collect(),
            key: GroupKey::from([7; 32]),
        })
    };
    assert_eq!(told(1, &[], &[0, 1, 2, 3]), Ok(true));
    assert_eq!(told(2, &[3], &[0, 1, 2]), Ok(true));
    assert_eq!(told(3, &[3, 1], &[0, 2]), Ok(true));
    for (lost, ranks, part) in [
        (&[0][..], &[1, 2, 3][..], "rank 0 leads"),
        (&[2], &[0, 1, 3], "lost it"),
        (&[4], &[0, 1, 2, 3], "cannot do without the ranks [4]"),
        (&[1, 1], &[0, 2, 3], "cannot do without"),
        (&[1], &[0, 2], "each of the ranks [0, 2, 3]"),
    ] {
        let why = told(4, lost, ranks).unwrap_err();
        assert!(why.contains(part), "{lost:?}: {why}");
    }
    assert_eq!(told(5, &[], &[0, 1, 2, 3]), Ok(true));
}
