//! Places at a server: so many in all, and so many for each address, so that one pod does not keep the others away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    of_address: usize,
    in_all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    of: HashMap<IpAddr, usize>,
}

/// A place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Room,
    address: IpAddr,
}

impl Room {
    /// With so many places for an address, and in all.
    pub(crate) fn new(of_address: usize, in_all: usize) -> Self {
        Self(Arc::new(Inner {
            of_address,
            in_all,
            taken: Mutex::default(),
        }))
    }

    /// A place, if there is one for this address.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        let own = taken.of.get(&address).copied().unwrap_or(0);
        if own >= self.0.of_address || taken.in_all >= self.0.in_all {
            return None;
        }
        taken.in_all += 1;
        taken.of.insert(address, own + 1);
        drop(taken);
        let room = self.clone();
        Some(Place { room, address })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.in_all = taken.in_all.saturating_sub(1);
        match taken.of.get_mut(&self.address) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.of.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_address_leaves_places_for_others_and_there_is_an_end() {
        let room = Room::new(2, 3);
        let [one, other, third] = [1, 2, 3].map(|last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
        let first = room.enter(one).unwrap();
        let _second = room.enter(one).unwrap();
        assert!(room.enter(one).is_none());
        let others = room.enter(other).unwrap();
        assert!(room.enter(third).is_none(), "all are taken");
        drop(first);
        assert!(room.enter(third).is_some());
        let again = room.enter(one).unwrap();
        drop((others, again));
        let taken = room.taken();
        assert_eq!(
            (taken.in_all, taken.of.len()),
            (1, 1),
            "nobody who left is remembered"
        );
    }
}
