//! How often an address may ask, so that nobody keeps pods from their certificates or the API server busy.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Questions that an address may ask at once.
const BURST: u32 = 10;
/// One more after this long.
const REFILL: Duration = Duration::from_secs(2);
/// Addresses that are remembered; whoever has been silent for longest is forgotten first.
const MOST_ADDRESSES: usize = 16_384;

/// Questions asked by each address lately.
#[derive(Debug, Default)]
pub struct Limiter {
    spent: HashMap<IpAddr, Spent>,
}

#[derive(Debug, Clone, Copy)]
struct Spent {
    count: u32,
    since: Instant,
    asked_at: Instant,
}

impl Spent {
    /// What is still counted at `now`, and since when.
    fn at(self, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.since).as_millis() / REFILL.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed >= self.count {
            return Self {
                count: 0,
                since: now,
                ..self
            };
        }
        Self {
            count: self.count - passed,
            since: self.since + REFILL * passed,
            ..self
        }
    }
}

impl Limiter {
    /// Whether the address may ask now.
    pub fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.spent.len() >= MOST_ADDRESSES && !self.spent.contains_key(&address) {
            self.make_room(now);
        }
        let entry = self.spent.entry(address).or_insert(Spent {
            count: 0,
            since: now,
            asked_at: now,
        });
        *entry = entry.at(now);
        entry.asked_at = now;
        if entry.count >= BURST {
            return false;
        }
        entry.count += 1;
        true
    }

    fn make_room(&mut self, now: Instant) {
        self.spent.retain(|_, spent| spent.at(now).count > 0);
        if self.spent.len() < MOST_ADDRESSES {
            return;
        }
        let oldest = self.spent.iter().min_by_key(|(_, spent)| spent.asked_at);
        if let Some(address) = oldest.map(|(address, _)| *address) {
            self.spent.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_that_asks_too_often_waits_and_others_do_not() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let [one, other] = [1, 2].map(|last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
        assert!((0..BURST).all(|_| limiter.admit(one, start)));
        assert!(!limiter.admit(one, start) && limiter.admit(other, start));
        assert!(!limiter.admit(one, start + REFILL / 2));
        assert!(limiter.admit(one, start + REFILL) && !limiter.admit(one, start + REFILL));
        let later = start + REFILL * 1000;
        assert!((0..BURST).all(|_| limiter.admit(one, later)) && !limiter.admit(one, later));
    }

    #[test]
    fn there_is_a_bound_on_what_is_remembered() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let address = |index: u32| IpAddr::from(Ipv4Addr::from(index));
        let most = u32::try_from(MOST_ADDRESSES).unwrap();
        let soon = start + REFILL / 4;
        assert!((0..most).all(|index| limiter.admit(address(index), start)));
        // One that has asked too often is not forgotten for newcomers, and those are not refused.
        while limiter.admit(address(7), soon) {}
        assert!((most..most + 10).all(|index| limiter.admit(address(index), soon)));
        assert!(!limiter.admit(address(7), soon));
        assert_eq!(limiter.spent.len(), MOST_ADDRESSES);
        assert!(limiter.admit(address(most), start + REFILL * 1000));
        assert_eq!(
            limiter.spent.len(),
            MOST_ADDRESSES,
            "that address was there already"
        );
        assert!(limiter.admit(address(2 * most), start + REFILL * 1000));
        assert_eq!(limiter.spent.len(), 2);
    }
}
