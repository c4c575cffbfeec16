//! Lines that an address causes in a log, at most one a minute, so that nobody fills it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(60);
/// Addresses that are remembered. What others cause then is left out.
const MOST_ADDRESSES: usize = 1024;

/// Who caused a line lately.
#[derive(Debug, Default)]
pub(crate) struct Quiet(Mutex<HashMap<Option<IpAddr>, Instant>>);

impl Quiet {
    /// Whether a line may be written about what this address did.
    pub(crate) fn may_tell(&self, address: Option<IpAddr>, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: Instant| now.saturating_duration_since(at) < PERIOD;
        if told.get(&address).is_some_and(|at| is_recent(*at)) {
            return false;
        }
        if told.len() >= MOST_ADDRESSES {
            told.retain(|_, at| is_recent(*at));
        }
        let has_room = told.len() < MOST_ADDRESSES;
        if has_room {
            told.insert(address, now);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_is_told_of_once_a_minute_and_many_do_not_fill_the_log() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let address = |index: usize| Some(Ipv4Addr::from(u32::try_from(index).unwrap()).into());
        assert!(quiet.may_tell(address(1), start) && !quiet.may_tell(address(1), start));
        assert!(quiet.may_tell(address(2), start) && quiet.may_tell(None, start));
        assert!(
            !quiet.may_tell(address(1), start + PERIOD / 2) && quiet.may_tell(address(1), start + PERIOD)
        );
        let told =
            (0..MOST_ADDRESSES * 2).filter(|index| quiet.may_tell(address(*index), start + PERIOD * 3));
        assert_eq!(told.count(), MOST_ADDRESSES);
        assert!(quiet.may_tell(address(MOST_ADDRESSES * 3), start + PERIOD * 4));
    }
}
