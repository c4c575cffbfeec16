//! How fast ranks load, from one look to the next: the API keeps bytes, not speeds.

use std::collections::HashMap;

use kube::ResourceExt as _;
use llamero_api::{LlamaGroup, group::RankPhase};
use llamero_core::time::Millis;

/// Looks that are further apart than this say nothing about the present.
const MOST: Millis = 30_000;

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Millis,
    bytes: i64,
    /// Bytes a second between the last two looks that differed.
    rate: Option<i64>,
}

/// Bytes a second of ranks that load.
#[derive(Clone, Debug, Default)]
pub struct Rates(HashMap<(String, i32), Look>);

impl Rates {
    /// Takes another look. Ranks that are gone are forgotten.
    pub fn look<'a>(&mut self, groups: impl Iterator<Item = &'a LlamaGroup>, now: Millis) {
        let mut seen = HashMap::new();
        for group in groups {
            let uid = group.uid().unwrap_or_default();
            for rank in group.status.iter().flat_map(|status| &status.ranks) {
                if rank.phase != RankPhase::Loading {
                    continue;
                }
                let key = (uid.clone(), rank.rank);
                let look = self.0.get(&key).map_or(
                    Look {
                        at: now,
                        bytes: rank.loaded_bytes,
                        rate: None,
                    },
                    |before| before.next(rank.loaded_bytes, now),
                );
                seen.insert(key, look);
            }
        }
        self.0 = seen;
    }

    /// Bytes a second of a rank, where two looks have told.
    #[must_use]
    pub fn of(&self, group: &LlamaGroup, rank: i32) -> Option<i64> {
        self.0.get(&(group.uid().unwrap_or_default(), rank))?.rate
    }
}

impl Look {
    fn next(self, bytes: i64, now: Millis) -> Self {
        let millis = now - self.at;
        if bytes == self.bytes && millis <= MOST {
            return self;
        }
        let read = bytes - self.bytes;
        let rate = (read > 0 && millis > 0 && millis <= MOST)
            .then(|| i128::from(read) * 1000 / i128::from(millis))
            .and_then(|rate| i64::try_from(rate).ok());
        Self { at: now, bytes, rate }
    }
}
