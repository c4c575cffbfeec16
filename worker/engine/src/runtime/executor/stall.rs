//! Finds the member that holds the others up once nothing has moved for too long.

use std::time::{Duration, Instant};

use crate::mesh::MeshError;

/// What is known about the members' progress.
pub(super) struct Movement {
    /// When a member last said anything, or was given something to do after a rest.
    at: Instant,
    /// In rank order.
    members: Vec<Progress>,
}

/// How far a member is.
struct Progress {
    rank: u32,
    /// Layers of this era, as it told.
    layers: u64,
}

impl Movement {
    pub(super) fn new(ranks: Vec<u32>, now: Instant) -> Self {
        let members = ranks.into_iter().map(|rank| Progress { rank, layers: 0 });
        Self {
            at: now,
            members: members.collect(),
        }
    }

    pub(super) fn moved(&mut self, now: Instant) {
        self.at = now;
    }

    pub(super) fn progressed(&mut self, member: usize, layers: u64) {
        if let Some(member) = self.members.get_mut(member) {
            member.layers = layers;
        }
    }

    /// Whether nothing has moved for `limit` although answers of the members `owing` are due. The one with the fewest layers
    /// is to blame: others wait for it inside the step. Where nobody of them is known, the first is, so that the group does not wait for ever.
    pub(super) fn check(
        &self,
        owing: &[usize],
        limit: Duration,
        stall: Duration,
        now: Instant,
    ) -> Result<(), MeshError> {
        let Some(first) = owing.first().filter(|_| now.duration_since(self.at) >= limit) else {
            return Ok(());
        };
        let known = owing.iter().filter_map(|member| self.members.get(*member));
        let last = known.min_by_key(|member| member.layers);
        Err(MeshError::Deadline {
            rank: last.map_or_else(|| u32::try_from(*first).unwrap_or(u32::MAX), |member| member.rank),
            millis: u64::try_from(stall.min(limit).as_millis()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_step_is_not_a_hang_and_the_last_one_is_to_blame() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let limit = Duration::from_secs(30);
        let check = |movement: &Movement, owing: &[usize], seconds| {
            movement.check(owing, limit, limit, after(seconds))
        };
        let mut movement = Movement::new(vec![0, 2, 5], start);
        // Hours of a step, while layers move.
        for minute in 1..100 {
            assert_eq!(check(&movement, &[0, 1, 2], minute * 20), Ok(()));
            movement.progressed(0, minute);
            movement.moved(after(minute * 20));
        }
        movement.progressed(1, 7);
        movement.progressed(2, 9);
        assert_eq!(check(&movement, &[0, 1, 2], 2009), Ok(()));
        let blamed = |rank| Err(MeshError::Deadline { rank, millis: 30_000 });
        assert_eq!(check(&movement, &[0, 1, 2], 2010), blamed(2));
        assert_eq!(check(&movement, &[0, 2], 2010), blamed(5));
        assert_eq!(
            check(&movement, &[9], 2010),
            blamed(9),
            "who is not known owes too"
        );
        assert_eq!(check(&movement, &[], 2010), Ok(()), "an idle group owes nothing");
    }
}
