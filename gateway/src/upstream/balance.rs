//! The least loaded leader. There are few leaders, so all are looked at ("power of all choices").

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::Instant;

use super::{Leader, Refusal, Refusals};

/// Where a request goes.
#[derive(Debug, Clone)]
pub enum Pick {
    /// To this leader.
    Leader(Arc<Leader>),
    /// All failed lately; one is worth a try at this time.
    RetryAt(Instant),
    /// There are none.
    None,
}

/// Choose among the leaders of a deployment for a request that some of them may have refused. Leaders that drain are
/// taken only when no other is left.
#[must_use]
pub fn pick(leaders: &[Arc<Leader>], refusals: &Refusals, now: Instant) -> Pick {
    // Equal leaders take turns, so that the first one is not favoured.
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let usable = (0..leaders.len())
        .map(|index| &leaders[(index + turn) % leaders.len()])
        .filter(|leader| opens_at(leader, refusals, now).is_some_and(|at| at <= now));
    if let Some(leader) = usable.min_by_key(|leader| (leader.draining(), leader.load(now))) {
        return Pick::Leader(Arc::clone(leader));
    }
    leaders
        .iter()
        .filter_map(|leader| opens_at(leader, refusals, now))
        .min()
        .map_or(Pick::None, Pick::RetryAt)
}

/// From when on the leader is worth a try; `None`: never.
fn opens_at(leader: &Arc<Leader>, refusals: &Refusals, now: Instant) -> Option<Instant> {
    let healthy = leader.avoid_until().unwrap_or(now);
    match refusals.of(leader) {
        None => Some(healthy),
        Some(Refusal::Busy(until)) => Some(until.max(healthy)),
        Some(Refusal::OtherWeights) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn leaders(count: u16) -> Vec<Arc<Leader>> {
        (0..count)
            .map(|index| Leader::connect(&format!("127.0.0.1:{}", 9000 + index)).unwrap())
            .collect()
    }

    fn picked(leaders: &[Arc<Leader>], now: Instant) -> Arc<Leader> {
        match pick(leaders, &Refusals::default(), now) {
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
        let Pick::RetryAt(at) = pick(&leaders, &Refusals::default(), now) else {
            panic!()
        };
        assert_eq!(Some(at), leaders[0].avoid_until());
        assert!(Arc::ptr_eq(&picked(&leaders, at), &leaders[0]));
        assert!(Arc::ptr_eq(
            &picked(&leaders, at + Duration::from_secs(60)),
            &leaders[0]
        ));
        drop(busy);
        assert!(matches!(pick(&[], &Refusals::default(), now), Pick::None));
    }

    #[tokio::test]
    async fn a_leader_that_refused_the_request_is_left_out_for_it_alone() {
        let leaders = leaders(2);
        let now = Instant::now();
        let mut refusals = Refusals::default();
        refusals.add(&leaders[0], Refusal::OtherWeights);
        let until = now + Duration::from_secs(2);
        for _ in 0..4 {
            let Pick::Leader(picked) = pick(&leaders, &refusals, now) else {
                panic!()
            };
            assert!(Arc::ptr_eq(&picked, &leaders[1]));
        }
        refusals.add(&leaders[1], Refusal::Busy(until));
        let Pick::RetryAt(at) = pick(&leaders, &refusals, now) else {
            panic!()
        };
        assert_eq!((at, refusals.room_at(now)), (until, Some(until)));
        refusals.add(&leaders[1], Refusal::OtherWeights);
        assert!(matches!(pick(&leaders, &refusals, until), Pick::None));
        assert!(matches!(
            pick(&leaders, &Refusals::default(), now),
            Pick::Leader(_)
        ));
    }
}
