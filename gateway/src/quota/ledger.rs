//! The books of the keys that this gateway keeps.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llamero_proto::v1::{AdmitReply, AdmitRequest, Level, Limit, Running};
use tokio::time::Instant;

use super::window::Window;
use crate::keys::Limits;

/// A gateway that has not told for so long how many requests it runs is gone, or has none.
const SILENCE: Duration = Duration::from_secs(30);
/// When a client that has as many requests as it may have should come again: nobody knows when one of them ends.
const CONCURRENCY_WAIT: Duration = Duration::from_secs(1);

/// Accounts by the names of keys. There are never more than keys.
#[derive(Debug)]
pub struct Ledger {
    beginning: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    accounts: HashMap<String, Account>,
    /// Up to this second another gateway may have kept books that are unknown here.
    unknown_until: Option<u64>,
}

#[derive(Debug)]
struct Account {
    requests: Window,
    tokens: Window,
    /// By gateway.
    running: HashMap<String, Share>,
}

#[derive(Debug)]
struct Share {
    count: u32,
    sequence: u64,
    heard: Instant,
}

impl Ledger {
    /// Empty books.
    #[must_use]
    pub fn new() -> Self {
        Self {
            beginning: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Let a request begin, or say which limit stands against it.
    #[must_use]
    pub fn admit(&self, ask: &AdmitRequest, limits: &Limits, now: Instant) -> AdmitReply {
        let second = self.second(now);
        let mut state = self.lock();
        let account = state.account(&ask.key, limits, second);
        // A request that would never fit goes in when nothing else is used.
        let tokens = ask.tokens.min(limits.tokens_per_minute.unwrap_or(u64::MAX));
        let refusal = account.refusal(ask, limits, tokens, second, now);
        let mut running = ask.running.clone().unwrap_or_default();
        if refusal.is_some() {
            running.count = running.count.saturating_sub(1);
        } else {
            account.requests.add(second, 1);
            account.tokens.add(second, tokens);
        }
        account.hear(running, now);
        let (refused_by, wait) = refusal.unwrap_or((Limit::None, Duration::ZERO));
        AdmitReply {
            refused_by: refused_by.into(),
            retry_after_millis: millis(wait),
            requests: limits
                .requests_per_minute
                .map(|limit| level(&mut account.requests, limit, second)),
            tokens: limits
                .tokens_per_minute
                .map(|limit| level(&mut account.tokens, limit, second)),
        }
    }

    /// A request took `tokens` more than it was let in with, or fewer; its gateway runs so many now.
    pub fn settle(&self, key: &str, limits: &Limits, tokens: i64, running: Running, now: Instant) {
        let second = self.second(now);
        let mut state = self.lock();
        let account = state.account(key, limits, second);
        if tokens >= 0 {
            account.tokens.add(second, tokens.unsigned_abs());
        } else {
            account.tokens.give_back(second, tokens.unsigned_abs());
        }
        account.hear(running, now);
    }

    /// Keep only accounts that `ours` names: the gateways have changed, and what others did is unknown here.
    pub fn hand_over(&self, ours: impl Fn(&str) -> bool, now: Instant) {
        let second = self.second(now);
        let mut state = self.lock();
        state.accounts.retain(|key, _| ours(key));
        state.unknown_until = Some(second);
    }

    /// Trust that nobody else kept books of these keys lately: for tests, which have no minute to wait.
    pub fn forget_others(&self) {
        let mut state = self.lock();
        state.accounts.clear();
        state.unknown_until = None;
    }

    /// Forget keys that are gone.
    pub fn keep(&self, names: &BTreeSet<String>) {
        self.lock().accounts.retain(|key, _| names.contains(key));
    }

    fn second(&self, now: Instant) -> u64 {
        // The first minute has room before it.
        now.duration_since(self.beginning).as_secs() + 61
    }

    /// Nothing panics while it holds the lock, and the numbers are valid at every time.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn account(&mut self, key: &str, limits: &Limits, second: u64) -> &mut Account {
        let unknown_until = self.unknown_until;
        let window = |limit: Option<u64>| match (limit, unknown_until) {
            (Some(limit), Some(until)) => Window::spent(limit, until, second),
            _ => Window::default(),
        };
        self.accounts.entry(key.to_owned()).or_insert_with(|| Account {
            requests: window(limits.requests_per_minute),
            tokens: window(limits.tokens_per_minute),
            running: HashMap::new(),
        })
    }
}

impl Account {
    /// The limit that stands against a request, and for how long.
    fn refusal(
        &mut self,
        ask: &AdmitRequest,
        limits: &Limits,
        tokens: u64,
        second: u64,
        now: Instant,
    ) -> Option<(Limit, Duration)> {
        self.running
            .retain(|_, share| now.duration_since(share.heard) < SILENCE);
        let asking = ask.running.as_ref();
        let others = self
            .running
            .iter()
            .filter(|(gateway, _)| asking.is_none_or(|asking| asking.gateway != **gateway));
        let others: u32 = others.map(|(_, share)| share.count).fold(0, u32::saturating_add);
        let running = others.saturating_add(asking.map_or(0, |asking| asking.count));
        if limits.concurrency.is_some_and(|most| running > most) {
            return Some((Limit::Concurrency, CONCURRENCY_WAIT));
        }
        let mut waits = [
            (Limit::Requests, &mut self.requests, limits.requests_per_minute, 1),
            (Limit::Tokens, &mut self.tokens, limits.tokens_per_minute, tokens),
        ];
        let waits = waits.iter_mut().filter_map(|(limit, window, most, wanted)| {
            let wait = window.wait(second, (*most)?.saturating_sub(*wanted));
            (wait > 0).then_some((*limit, Duration::from_secs(wait)))
        });
        waits.max_by_key(|(_, wait)| *wait)
    }

    /// What a gateway tells of itself, unless it is older than what is known.
    fn hear(&mut self, running: Running, now: Instant) {
        let Running {
            gateway,
            count,
            sequence,
        } = running;
        let known = self.running.get(&gateway).map(|share| share.sequence);
        if known.is_some_and(|known| known > sequence) {
            return;
        }
        let share = Share {
            count,
            sequence,
            heard: now,
        };
        self.running.insert(gateway, share);
    }
}

fn level(window: &mut Window, limit: u64, second: u64) -> Level {
    Level {
        limit,
        remaining: limit.saturating_sub(window.used(second)),
        reset_millis: 1000 * window.wait(second, 0),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(tokens: u64, gateway: &str, count: u32, sequence: u64) -> AdmitRequest {
        AdmitRequest {
            key: "a".to_owned(),
            tokens,
            running: Some(Running {
                gateway: gateway.to_owned(),
                count,
                sequence,
            }),
        }
    }

    fn limits(requests: u64, tokens: u64, concurrency: u32) -> Limits {
        Limits {
            requests_per_minute: Some(requests),
            tokens_per_minute: Some(tokens),
            concurrency: Some(concurrency),
        }
    }

    #[test]
    fn requests_and_tokens_are_limited_in_every_minute() {
        let ledger = Ledger::new();
        let limits = limits(3, 100, 10);
        let at = |seconds| ledger.beginning + Duration::from_secs(seconds);
        let admit = |tokens, seconds| ledger.admit(&ask(tokens, "g", 1, seconds), &limits, at(seconds));
        assert_eq!(admit(60, 0).refused_by(), Limit::None);
        let refused = admit(60, 10);
        assert_eq!(
            (refused.refused_by(), refused.retry_after_millis),
            (Limit::Tokens, 51_000)
        );
        let level = refused.tokens.unwrap();
        assert_eq!(
            (level.limit, level.remaining, level.reset_millis),
            (100, 40, 51_000)
        );
        // It took only 10 of the 60.
        let running = Running {
            gateway: "g".into(),
            count: 0,
            sequence: 10,
        };
        ledger.settle("a", &limits, -50, running, at(10));
        assert_eq!(admit(60, 11).refused_by(), Limit::None);
        // More than the limit as a whole fits when nothing is used.
        assert_eq!(admit(1000, 12).refused_by(), Limit::Tokens);
        assert_eq!(admit(1, 13).refused_by(), Limit::None);
        let refused = admit(1, 14);
        assert_eq!(
            (refused.refused_by(), refused.retry_after_millis),
            (Limit::Requests, 47_000)
        );
        assert_eq!(admit(1000, 200).refused_by(), Limit::None);
    }

    #[test]
    fn concurrency_counts_all_gateways_and_forgets_those_that_are_silent() {
        let ledger = Ledger::new();
        let limits = limits(1000, 1000, 3);
        let at = |seconds| ledger.beginning + Duration::from_secs(seconds);
        let admit = |gateway, count, sequence, seconds| {
            ledger
                .admit(&ask(0, gateway, count, sequence), &limits, at(seconds))
                .refused_by()
        };
        assert_eq!(admit("x", 1, 1, 0), Limit::None);
        assert_eq!(admit("y", 2, 1, 0), Limit::None);
        assert_eq!(admit("x", 2, 2, 0), Limit::Concurrency);
        // A message that was overtaken changes nothing.
        let late = Running {
            gateway: "y".into(),
            count: 0,
            sequence: 0,
        };
        ledger.settle("a", &limits, 0, late, at(1));
        assert_eq!(admit("x", 2, 3, 1), Limit::Concurrency);
        let told = Running {
            gateway: "y".into(),
            count: 1,
            sequence: 2,
        };
        ledger.settle("a", &limits, 0, told, at(1));
        assert_eq!(admit("x", 2, 4, 1), Limit::None);
        assert_eq!(admit("x", 3, 5, 40), Limit::None, "y is gone");
    }

    #[test]
    fn what_others_kept_counts_as_spent() {
        let ledger = Ledger::new();
        let limits = limits(60, 6000, 9);
        let at = |seconds| ledger.beginning + Duration::from_secs(seconds);
        ledger.hand_over(|_| false, at(100));
        let refused = ledger.admit(&ask(1, "g", 1, 1), &limits, at(100));
        assert_ne!(refused.refused_by(), Limit::None);
        let later = ledger.admit(&ask(1, "g", 1, 2), &limits, at(130));
        assert_eq!(
            (later.refused_by(), later.requests.unwrap().remaining),
            (Limit::None, 28)
        );
        // Ours stay as they are.
        ledger.hand_over(|key| key == "a", at(131));
        assert_eq!(
            ledger
                .admit(&ask(1, "g", 1, 3), &limits, at(131))
                .requests
                .unwrap()
                .remaining,
            28
        );
        ledger.keep(&BTreeSet::new());
        assert_eq!(ledger.lock().accounts.len(), 0);
    }
}
