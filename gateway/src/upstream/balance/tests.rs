//! Single choices.

use std::time::Duration;

use super::*;

fn leaders(count: u16) -> Vec<Arc<Leader>> {
    (0..count)
        .map(|index| Leader::connect(&format!("127.0.0.1:{}", 9000 + index)).unwrap())
        .collect()
}

fn picked(leaders: &[Arc<Leader>], now: Instant) -> Arc<Leader> {
    match pick(leaders, &Refusals::default(), None, now) {
        Pick::Leader(leader) => leader,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn load_spreads_evenly() {
    let leaders = leaders(3);
    let now = Instant::now();
    let running: Vec<_> = (0..9).map(|_| picked(&leaders, now).begin()).collect();
    assert!(leaders.iter().all(|leader| leader.load(now) == 3));
    drop(running);
}

#[tokio::test]
async fn a_failed_leader_is_left_alone_for_a_while() {
    let leaders = leaders(2);
    let now = Instant::now();
    leaders[0].failed(now);
    let busy = leaders[1].begin();
    assert!(Arc::ptr_eq(&picked(&leaders, now), &leaders[1]));
    leaders[1].failed(now);
    leaders[1].failed(now);
    let Pick::RetryAt(at) = pick(&leaders, &Refusals::default(), None, now) else {
        panic!()
    };
    assert_eq!(Some(at), leaders[0].avoid_until());
    assert!(Arc::ptr_eq(&picked(&leaders, at), &leaders[0]));
    assert!(Arc::ptr_eq(
        &picked(&leaders, at + Duration::from_secs(60)),
        &leaders[0]
    ));
    drop(busy);
    assert!(matches!(pick(&[], &Refusals::default(), None, now), Pick::None));
}

#[tokio::test]
async fn a_leader_that_refused_the_request_is_left_out_for_it_alone() {
    let leaders = leaders(2);
    let now = Instant::now();
    let mut refusals = Refusals::default();
    refusals.add(&leaders[0], Refusal::OtherWeights);
    let until = now + Duration::from_secs(2);
    for _ in 0..4 {
        let Pick::Leader(picked) = pick(&leaders, &refusals, None, now) else {
            panic!()
        };
        assert!(Arc::ptr_eq(&picked, &leaders[1]));
    }
    refusals.add(&leaders[1], Refusal::Busy(until));
    let Pick::RetryAt(at) = pick(&leaders, &refusals, None, now) else {
        panic!()
    };
    assert_eq!((at, refusals.room_at(now)), (until, Some(until)));
    refusals.add(&leaders[1], Refusal::OtherWeights);
    assert!(matches!(pick(&leaders, &refusals, None, until), Pick::None));
    assert!(matches!(
        pick(&leaders, &Refusals::default(), None, now),
        Pick::Leader(_)
    ));
}

fn candidates(loads: &[u32]) -> Vec<Candidate<'static>> {
    let addresses = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"];
    let candidate = |(address, &load): (&&'static str, &u32)| Candidate {
        address,
        load,
        queue: false,
        cache: 0,
        draining: false,
    };
    addresses.iter().zip(loads).map(candidate).collect()
}

#[test]
fn of_as_many_requests_the_shorter_ones_leave_more_room() {
    let mut all = candidates(&[3, 2, 2, 4]);
    assert_eq!(choose(&all, None), Some(1));
    all[1].cache = 700;
    assert_eq!(choose(&all, None), Some(2));
    // The next request would wait there.
    all[1].cache = 950;
    all[2].cache = 990;
    assert_eq!(choose(&all, None), Some(0));
    // Who waited at the last sample says little now.
    all[0].queue = true;
    assert_eq!(choose(&all, None), Some(0));
}

#[test]
fn requests_that_belong_together_meet_while_the_load_is_bounded() {
    let key = Some(Affinity::of_session("a"));
    let even = candidates(&[4, 4, 4, 4]);
    let first = choose(&even, key).unwrap();
    // The order of the leaders does not matter.
    let mut turned = even.clone();
    turned.rotate_left(1);
    assert_eq!(turned[choose(&turned, key).unwrap()].address, even[first].address);
    // Five of sixteen and one are within the bound, six are not.
    let mut busy = even.clone();
    busy[first].load = 5;
    assert_eq!(choose(&busy, key), Some(first));
    busy[first].load = 6;
    let second = choose(&busy, key).unwrap();
    assert_ne!(second, first);
    // Whoever is passed over for a queue, or because it goes, is chosen again when nothing better is left.
    let mut queued = even.clone();
    queued[first].queue = true;
    assert_eq!(choose(&queued, key), Some(second));
    queued.iter_mut().for_each(|leader| leader.queue = true);
    assert_eq!(choose(&queued, key), Some(first));
    let mut leaving = even.clone();
    leaving[first].draining = true;
    assert_eq!(choose(&leaving, key), Some(second));
    let last = [leaving[first]];
    assert_eq!((choose(&last, key), choose(&[], key)), (Some(0), None));
}
