//! The conditions that `kubectl wait`, Flux, Argo CD and whoever else uses kstatus understand of every kind: Reconciling while the
//! operator gets on, Stalled when somebody must change something first.

use llamero_api::deployment::reason;

use super::conditions::{Finding, no, yes};

/// Reasons that no amount of waiting heals. What may come by itself, like room, does not count.
const NEEDS_SOMEBODY: [&str; 8] = [
    reason::SOURCE_UNREADABLE,
    reason::DOES_NOT_FIT,
    reason::NO_BACKEND,
    reason::REVISION_UNKNOWN,
    reason::PAUSED,
    reason::PROGRESS_DEADLINE_EXCEEDED,
    reason::RESTART_BUDGET_SPENT,
    reason::WORKER_UNUSABLE,
];

/// Reconciling and Stalled, from Ready and Progressing.
pub(super) fn of(ready: &Finding, progressing: &Finding) -> (Finding, Finding) {
    let Finding(works, why, message) = progressing;
    let serves = ready.0 == "True";
    let paused = *why == reason::PAUSED;
    // A paused rollout is what the user asked for; it stalls nothing while everything serves.
    let stalled = *works == "False" && NEEDS_SOMEBODY.contains(why) && !(paused && serves);
    let reconciling = !stalled && (*works == "True" || !serves);
    let told = |is: bool, because: &Finding| {
        if is {
            yes(because.1, because.2.clone())
        } else {
            no(reason::AS_WANTED, "")
        }
    };
    let because = if *works == "True" || !message.is_empty() {
        progressing
    } else {
        ready
    };
    (told(reconciling, because), told(stalled, progressing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(ready: Finding, progressing: Finding) -> (&'static str, &'static str) {
        let (reconciling, stalled) = of(&ready, &progressing);
        (reconciling.0, stalled.0)
    }

    #[test]
    fn one_of_three_is_told() {
        let serves = || yes(reason::AS_WANTED, "");
        let waits = || no(reason::STARTING, "0 of 1 groups serve");
        assert_eq!(states(serves(), no(reason::AS_WANTED, "")), ("False", "False"));
        assert_eq!(
            states(waits(), yes(reason::STARTING, "groups start")),
            ("True", "False")
        );
        assert_eq!(states(serves(), yes(reason::ROLLING_OUT, "1")), ("True", "False"));
        // Room may come by itself.
        assert_eq!(states(waits(), no(reason::NO_ROOM, "waits")), ("True", "False"));
        for why in NEEDS_SOMEBODY {
            assert_eq!(states(waits(), no(why, "w")), ("False", "True"), "{why}");
        }
        assert_eq!(states(serves(), no(reason::PAUSED, "w")), ("False", "False"));
        // A rollout that got stuck is told although what was there before serves on.
        let late = no(reason::PROGRESS_DEADLINE_EXCEEDED, "w");
        assert_eq!(states(serves(), late), ("False", "True"));
    }
}
