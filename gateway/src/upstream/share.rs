//! Which groups a request goes to while a canary has a share of its own: drawn once for each request, so that what goes on after a loss
//! goes on with the same revision where that still serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::Instant;

use super::{Affinity, Leader, Pick, Refusals, pick};
use crate::discovery::{Canary, Deployment};

/// Requests of a hundred, as they are dealt.
const WHOLE: u32 = 100;

/// A request's place among a hundred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw(u32);

impl Draw {
    /// The next one. Of a hundred in a row every place comes once, and small shares are spread evenly among them.
    #[must_use]
    pub fn next() -> Self {
        static TURN: AtomicU32 = AtomicU32::new(0);
        // 61 and 100 have no common factor, and 61/100 is near the golden ratio.
        Self(TURN.fetch_add(1, Ordering::Relaxed).wrapping_mul(61) % WHOLE)
    }

    const fn within(self, percent: u32) -> bool {
        self.0 < percent
    }
}

/// Choose among the leaders of a deployment: those that the draw is for, else the others.
#[must_use]
pub fn pick_share(
    deployment: &Deployment,
    draw: Draw,
    affinity: Option<Affinity>,
    refusals: &Refusals,
    now: Instant,
) -> Pick {
    let Some(Canary { leaders, percent }) = &deployment.canary else {
        return pick(&deployment.leaders, refusals, affinity, now);
    };
    let (canary, others): (Vec<Arc<Leader>>, Vec<Arc<Leader>>) = deployment
        .leaders
        .iter()
        .cloned()
        .partition(|leader| leaders.contains(leader.address()));
    let (first, second) = if draw.within(*percent) {
        (canary, others)
    } else {
        (others, canary)
    };
    let pick = |leaders: &[Arc<Leader>]| pick(leaders, refusals, affinity, now);
    match (pick(&first), pick(&second)) {
        (Pick::Leader(leader), _) | (_, Pick::Leader(leader)) => Pick::Leader(leader),
        (Pick::RetryAt(one), Pick::RetryAt(other)) => Pick::RetryAt(one.min(other)),
        (Pick::RetryAt(at), Pick::None) | (Pick::None, Pick::RetryAt(at)) => Pick::RetryAt(at),
        (Pick::None, Pick::None) => Pick::None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::discovery::DeploymentKey;

    /// Two leaders; the second belongs to the canary.
    fn deployment(percent: u32) -> Deployment {
        let addresses = ["127.0.0.1:9000", "127.0.0.1:9001"];
        Deployment {
            key: DeploymentKey {
                namespace: "ns".to_owned(),
                name: "m".to_owned(),
            },
            model: "m".to_owned(),
            former: BTreeSet::new(),
            created: 0,
            max_context: None,
            problem: None,
            leaders: addresses
                .map(|address| Leader::connect(address).unwrap())
                .to_vec(),
            canary: Some(Canary {
                leaders: BTreeSet::from(["127.0.0.1:9001".to_owned()]),
                percent,
            }),
            first_adapters: Vec::new(),
        }
    }

    fn picked(deployment: &Deployment, draw: u32, now: Instant) -> usize {
        match pick_share(deployment, Draw(draw), None, &Refusals::default(), now) {
            Pick::Leader(leader) => usize::from(Arc::ptr_eq(&leader, &deployment.leaders[1])),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_canary_gets_its_share_exactly() {
        let now = Instant::now();
        for percent in [0, 7, 50, 100] {
            let deployment = deployment(percent);
            let canary: usize = (0..WHOLE).map(|draw| picked(&deployment, draw, now)).sum();
            assert_eq!(canary, percent as usize);
        }
    }

    #[tokio::test]
    async fn where_the_drawn_groups_cannot_the_others_answer() {
        let now = Instant::now();
        let deployment = deployment(10);
        assert_eq!(
            (picked(&deployment, 9, now), picked(&deployment, 10, now)),
            (1, 0)
        );
        deployment.leaders[1].failed(now);
        assert_eq!(picked(&deployment, 9, now), 0);
        deployment.leaders[0].failed(now);
        let pick = pick_share(&deployment, Draw(9), None, &Refusals::default(), now);
        let Pick::RetryAt(at) = pick else {
            panic!("{pick:?}")
        };
        assert!(at <= now + Duration::from_secs(5));
    }

    #[test]
    fn a_hundred_draws_are_all_places() {
        let places: BTreeSet<u32> = (0..WHOLE).map(|turn| turn.wrapping_mul(61) % WHOLE).collect();
        assert_eq!(places.len(), WHOLE as usize);
    }
}
