//! Steps that were refused: by a quota, by Pod Security, by admission, or because a name is taken. They wait before they are tried again,
//! longer each time, because what somebody must change first is not helped by asking at every event.

use crate::{
    children::ManagedObject,
    observed::Refusal,
    plan::{Action, Step},
    time::{self, Millis},
};

/// First wait; doubles up to [`LAST`].
const FIRST: Millis = 1_000;
const LAST: Millis = 30_000;
/// Waits are longer by up to this many hundredths, so that many refused objects do not come back at one moment.
const JITTER_PERCENT: u64 = 25;

/// When a refused step is tried again.
#[must_use]
pub fn retry_at(refusal: &Refusal) -> Millis {
    let doublings = refusal.times.saturating_sub(1).min(10);
    let wait = (FIRST << doublings).min(LAST);
    refusal.at + time::spread(wait, JITTER_PERCENT, (&refusal.target, refusal.times))
}

/// Leaves out steps that wait. When the first of them is due.
pub fn hold_each(steps: &mut Vec<Step>, refusals: &[Refusal], now: Millis) -> Option<Millis> {
    let mut next = None;
    steps.retain(|step| match waiting(step, refusals, now) {
        Some(at) => {
            next = time::earlier(next, Some(at));
            false
        }
        None => true,
    });
    next
}

/// Leaves out the first step that waits and all behind it: steps of a group depend on each other. Only on a disruption budget none does: a group
/// serves also where a quota allows no budget. When the first of them is due.
pub fn hold_rest(steps: &mut Vec<Step>, refusals: &[Refusal], now: Millis) -> Option<Millis> {
    let (mut next, mut is_held) = (None, false);
    steps.retain(|step| {
        if is_held {
            return false;
        }
        let Some(due) = waiting(step, refusals, now) else {
            return true;
        };
        next = time::earlier(next, Some(due));
        is_held = !is_budget(step);
        false
    });
    next
}

const fn is_budget(step: &Step) -> bool {
    matches!(
        &step.action,
        Action::Apply {
            object: ManagedObject::Budget(_),
            ..
        }
    )
}

fn waiting(step: &Step, refusals: &[Refusal], now: Millis) -> Option<Millis> {
    if refusals.is_empty() {
        return None;
    }
    let target = step.action.target();
    refusals
        .iter()
        .find(|refusal| refusal.target == target)
        .map(retry_at)
        .filter(|at| *at > now)
}

/// What was refused last, in the words of who refused it.
#[must_use]
pub fn latest(refusals: &[Refusal]) -> Option<String> {
    refusals
        .iter()
        .max_by_key(|refusal| (refusal.at, &refusal.target))
        .map(|refusal| refusal.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(times: u32) -> Refusal {
        Refusal {
            target: "CreatePod p".into(),
            message: "no".into(),
            at: 1_000_000,
            times,
        }
    }

    #[test]
    fn waits_double_up_to_a_bound_and_differ_between_objects() {
        let wait = |times| retry_at(&refusal(times)) - 1_000_000;
        assert!((1_000..=1_250).contains(&wait(1)), "{}", wait(1));
        assert!((4_000..=5_000).contains(&wait(3)), "{}", wait(3));
        assert!((30_000..=37_500).contains(&wait(u32::MAX)), "{}", wait(u32::MAX));
        let waits: std::collections::BTreeSet<Millis> = (0..20)
            .map(|n| {
                retry_at(&Refusal {
                    target: format!("CreatePod p-{n}"),
                    ..refusal(6)
                })
            })
            .collect();
        assert!(waits.len() > 10, "{waits:?}");
    }
}
