//! What was used in the last minute, second by second.
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "61 places, and the remainder of 61"
)]

/// The second that has begun, and the minute before it: so no 60 seconds ever hold more than is allowed.
const SLOTS: u64 = 61;

/// A sliding window. Seconds are counted from any beginning and never go back.
#[derive(Debug, Clone)]
pub struct Window {
    slots: [u64; SLOTS as usize],
    newest: u64,
    used: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            slots: [0; SLOTS as usize],
            newest: 0,
            used: 0,
        }
    }
}

impl Window {
    /// A window in which all seconds up to `until` count as used evenly, so that they hold `limit` together.
    #[must_use]
    pub fn spent(limit: u64, until: u64, now: u64) -> Self {
        let mut window = Self::default();
        for second in (now + 1).saturating_sub(SLOTS)..=now {
            let share = if second <= until { limit.div_ceil(60) } else { 0 };
            window.add(second, share);
        }
        window
    }

    /// What was used up to this second.
    pub fn used(&mut self, second: u64) -> u64 {
        let passed = second.saturating_sub(self.newest).min(SLOTS);
        for ahead in 1..=passed {
            let slot = self.slot(self.newest + ahead);
            self.used -= std::mem::take(slot);
        }
        self.newest = self.newest.max(second);
        self.used
    }

    /// So much more is used.
    pub fn add(&mut self, second: u64, amount: u64) {
        self.used(second);
        let room = u64::MAX - self.used;
        let amount = amount.min(room);
        let newest = self.newest;
        *self.slot(newest) += amount;
        self.used += amount;
    }

    /// So much was not used after all; it is taken from the newest seconds.
    pub fn give_back(&mut self, second: u64, amount: u64) {
        self.used(second);
        let mut left = amount;
        for back in 0..SLOTS.min(self.newest + 1) {
            let slot = self.slot(self.newest - back);
            let taken = left.min(*slot);
            *slot -= taken;
            self.used -= taken;
            left -= taken;
        }
    }

    /// Seconds until no more than `most` are used, if nothing is added.
    pub fn wait(&mut self, second: u64, most: u64) -> u64 {
        let mut used = self.used(second);
        let mut waited = 0;
        while used > most && waited < SLOTS {
            waited += 1;
            used -= *self.slot(second + waited);
        }
        waited
    }

    /// The slot of a second; one minute later it is another's.
    fn slot(&mut self, second: u64) -> &mut u64 {
        // In range by the remainder.
        &mut self.slots[(second % SLOTS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_is_forgotten_after_a_minute() {
        let mut window = Window::default();
        window.add(1000, 5);
        window.add(1010, 3);
        assert_eq!(
            (window.used(1060), window.used(1061), window.used(1071)),
            (8, 3, 0)
        );
        window.add(1071, 2);
        assert_eq!(window.used(5000), 0);
    }

    #[test]
    fn waiting_ends_when_enough_is_forgotten() {
        let mut window = Window::default();
        window.add(100, 5);
        window.add(130, 5);
        assert_eq!(
            [10, 9, 5, 4, 0].map(|most| window.wait(130, most)),
            [0, 31, 31, 61, 61]
        );
        window.give_back(131, 7);
        assert_eq!((window.used(131), window.wait(131, 2)), (3, 30));
        window.give_back(131, 100);
        assert_eq!(window.used(131), 0);
    }

    #[test]
    fn an_unknown_past_counts_as_spent() {
        let mut window = Window::spent(600, 990, 1000);
        assert_eq!(window.used(1000), 510);
        assert_eq!(window.used(1050), 10);
        let mut window = Window::spent(600, 100, 1000);
        assert_eq!(window.used(1000), 0);
        let mut early = Window::spent(60, 3, 3);
        assert_eq!(early.used(3), 4);
    }
}
