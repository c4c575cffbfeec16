//! Whether the budget allows another try, and where not to try again. Failures are of the past: see [`crate::groups::stamps`].

use std::collections::BTreeSet;

use llamero_api::{deployment::Recovery, group::MemberFailure};

use crate::{
    groups::{
        admitted::LARGER,
        losses::{PRESSURE, UNUSABLE},
    },
    time::{self, Millis},
};

/// Longest wait between replacements.
const LONGEST_BACKOFF: Millis = 300_000;

/// Waits after a rank said that it cannot work as it is configured, the first one and the last of those that double: a damaged file
/// may be put right soon, and may not.
const FIRST_UNUSABLE_BACKOFF: Millis = 60_000;
const LAST_UNUSABLE_BACKOFF: Millis = 900_000;

/// Incidents with less time between them follow each other: longer than the longest wait and loading until it fails again.
const UNUSABLE_WINDOW: Millis = 7_200_000;

/// Whether lost members may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// At once.
    Now,
    /// Not before.
    At(Millis),
    /// The budget is spent until then.
    SpentUntil(Millis),
    /// A rank cannot work as it is configured; tried again then, in case that what it lacked is there by then.
    UnusableUntil(Millis),
}

/// Charged incidents within the window, oldest first. Members lost at one time are one incident.
#[must_use]
pub fn incidents(failures: &[MemberFailure], policy: &Recovery, now: Millis) -> Vec<Millis> {
    within_window(failures, policy, now, |failure| failure.charged)
}

fn within_window(
    failures: &[MemberFailure],
    policy: &Recovery,
    now: Millis,
    which: impl Fn(&MemberFailure) -> bool,
) -> Vec<Millis> {
    let since = now - policy.restart_window.millis();
    let times = failures
        .iter()
        .filter(|failure| which(failure))
        .map(|failure| time::millis(&failure.time))
        .filter(|at| *at > since);
    times.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Whether the budget and the backoff allow a replacement.
#[must_use]
pub fn permit(failures: &[MemberFailure], policy: &Recovery, now: Millis) -> Permit {
    if let Some(at) = unusable_until(failures).filter(|at| *at > now) {
        return Permit::UnusableUntil(at);
    }
    let incidents = incidents(failures, policy, now);
    let budget = usize::try_from(policy.restart_budget).unwrap_or(0);
    if let Some(first_too_many) = incidents.iter().rev().nth(budget) {
        return Permit::SpentUntil(first_too_many + policy.restart_window.millis());
    }
    // What a node's pressure ended is charged to nobody, and is not tried at once again and again either.
    let paced = within_window(failures, policy, now, |failure| {
        failure.charged || failure.reason == PRESSURE
    });
    let Some(last) = paced.last() else {
        return Permit::Now;
    };
    let at = last + backoff(paced.len(), policy);
    if now >= at { Permit::Now } else { Permit::At(at) }
}

/// Until when a group waits after its last rank that could not work as it is configured. Incidents follow each other while less than
/// [`UNUSABLE_WINDOW`] is between them: how long loading takes until it fails shortens no wait.
fn unusable_until(failures: &[MemberFailure]) -> Option<Millis> {
    let times: BTreeSet<Millis> = failures
        .iter()
        .filter(|failure| failure.reason == UNUSABLE)
        .map(|failure| time::millis(&failure.time))
        .collect();
    let last = *times.last()?;
    let earlier = times.iter().rev().skip(1);
    let followed = earlier.zip(times.iter().rev());
    let in_a_row = followed
        .take_while(|(one, next)| *next - *one < UNUSABLE_WINDOW)
        .count();
    let wait = (FIRST_UNUSABLE_BACKOFF << in_a_row.min(8)).min(LAST_UNUSABLE_BACKOFF);
    Some(last + wait)
}

/// The wait after so many incidents within the window: none after the first, then doubling up to [`LONGEST_BACKOFF`].
fn backoff(incidents: usize, policy: &Recovery) -> Millis {
    let Some(doublings) = incidents.checked_sub(2) else {
        return 0;
    };
    let doublings = u32::try_from(doublings).unwrap_or(u32::MAX).min(20);
    policy
        .backoff
        .millis()
        .saturating_mul(1 << doublings)
        .min(LONGEST_BACKOFF)
}

/// Nodes on which members failed within the window, for whatever reason that may lie in the node.
#[must_use]
pub fn avoid(failures: &[MemberFailure], policy: &Recovery, now: Millis) -> BTreeSet<String> {
    let since = now - policy.restart_window.millis();
    failures
        .iter()
        .filter(|f| {
            time::millis(&f.time) > since
                && !matches!(
                    f.reason.as_str(),
                    "Deleted" | "Evicted" | "Refused" | LARGER | UNUSABLE
                )
        })
        .filter_map(|f| f.node.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Millis = 1_000_000_000;

    fn failure(at: Millis, reason: &str, charged: bool) -> MemberFailure {
        MemberFailure {
            time: time::to_time(at),
            index: 1,
            attempt: 0,
            node: Some("n1".into()),
            reason: reason.into(),
            exit_code: None,
            message: String::new(),
            charged,
        }
    }

    fn policy(budget: i32) -> Recovery {
        Recovery {
            restart_budget: budget,
            ..Recovery::default()
        }
    }

    #[test]
    fn the_first_replacement_is_free_and_then_waits_double() {
        assert_eq!(permit(&[failure(T, "Exited", true)], &policy(10), T), Permit::Now);
        let mut failures = vec![failure(T, "Exited", true), failure(T + 1000, "Exited", true)];
        assert_eq!(permit(&failures, &policy(10), T + 1000), Permit::At(T + 11_000));
        failures.push(failure(T + 20_000, "Exited", true));
        assert_eq!(permit(&failures, &policy(10), T + 20_000), Permit::At(T + 40_000));
        assert_eq!(permit(&failures, &policy(10), T + 40_000), Permit::Now);
    }

    #[test]
    fn a_spent_budget_recovers_with_the_window() {
        let failures = vec![failure(T, "Exited", true), failure(T + 5000, "Exited", true)];
        assert_eq!(
            permit(&failures, &policy(1), T + 5000),
            Permit::SpentUntil(T + 3_600_000)
        );
        assert_eq!(permit(&failures, &policy(1), T + 3_600_000), Permit::Now);
        assert_eq!(
            permit(&[failure(T, "Exited", true)], &policy(0), T),
            Permit::SpentUntil(T + 3_600_000)
        );
    }

    #[test]
    fn evictions_are_not_charged_and_members_lost_together_are_one_incident() {
        let failures = vec![
            failure(T, "Evicted", false),
            failure(T, "Exited", true),
            failure(T, "Exited", true),
        ];
        assert_eq!(incidents(&failures, &policy(1), T), vec![T]);
        assert_eq!(permit(&failures, &policy(1), T), Permit::Now);
    }

    #[test]
    fn what_cannot_work_as_configured_waits_ever_longer_and_spends_no_budget() {
        let mut failures = Vec::new();
        let mut now = T;
        for wait in [60_000, 120_000, 240_000, 480_000, 900_000, 900_000, 900_000] {
            // Two members at one time are one try.
            failures.extend([failure(now, UNUSABLE, false), failure(now, UNUSABLE, false)]);
            let until = now + wait;
            assert_eq!(
                permit(&failures, &policy(0), now + 1),
                Permit::UnusableUntil(until)
            );
            assert_eq!(permit(&failures, &policy(0), until), Permit::Now);
            now = until;
        }
        assert!(avoid(&failures, &policy(1), now).is_empty());
        // Who loads for long before it fails waits no less.
        now += 3_000_000;
        failures.push(failure(now, UNUSABLE, false));
        let until = now + LAST_UNUSABLE_BACKOFF;
        assert_eq!(permit(&failures, &policy(0), now), Permit::UnusableUntil(until));
        now += UNUSABLE_WINDOW;
        failures.push(failure(now, UNUSABLE, false));
        let again = Permit::UnusableUntil(now + FIRST_UNUSABLE_BACKOFF);
        assert_eq!(permit(&failures, &policy(0), now), again);
    }

    #[test]
    fn pressure_is_backed_off_on_other_nodes_and_charged_to_nobody() {
        let mut failures = vec![failure(T, PRESSURE, false)];
        assert_eq!(permit(&failures, &policy(0), T), Permit::Now);
        assert!(avoid(&failures, &policy(0), T).contains("n1"));
        failures.push(failure(T + 1000, PRESSURE, false));
        assert_eq!(permit(&failures, &policy(0), T + 1000), Permit::At(T + 11_000));
        failures.push(failure(T + 20_000, PRESSURE, false));
        assert_eq!(permit(&failures, &policy(0), T + 20_000), Permit::At(T + 40_000));
        assert!(incidents(&failures, &policy(0), T + 20_000).is_empty());
    }

    #[test]
    fn nodes_of_deleted_pods_are_not_avoided() {
        assert!(avoid(&[failure(T, "Deleted", false)], &policy(1), T).is_empty());
        assert!(avoid(&[failure(T, "Unschedulable", false)], &policy(1), T).contains("n1"));
    }
}
