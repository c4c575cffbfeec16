//! The condition Progressing: what the operator works on, and what it waits for.

use llamero_api::{deployment::reason, group::GroupPhase};

use super::conditions::{Facts, Finding, failed, no, wanted, yes};
use crate::{plan::Acceptance, rollout};

pub(super) fn progressing(facts: &Facts<'_>) -> Finding {
    rolling(facts)
        .or_else(|| going(facts))
        .or_else(|| unaccepted(facts))
        .or_else(|| moving(facts))
        .unwrap_or_else(|| toward_ready(facts))
}

/// Groups of an older revision, and how many of them a canary leaves alone.
fn older(facts: &Facts<'_>) -> (usize, usize) {
    let partition = facts.deployment.object.spec.rollout.partition;
    let views = facts.rows.iter().map(|row| &row.view);
    let kept = rollout::kept(views, partition, &facts.verdict.revision);
    let older = wanted(facts).filter(|row| row.view.spec().revision != facts.verdict.revision);
    let (stay, go): (Vec<_>, Vec<_>) = older.partition(|row| kept.contains(&row.view.key.name));
    (stay.len() + go.len(), stay.len())
}

/// How a rollout gets on.
fn rolling(facts: &Facts<'_>) -> Option<Finding> {
    let rollout = &facts.deployment.object.spec.rollout;
    let (older, stay) = older(facts);
    let outdated = older - stay;
    let text = format!("{outdated} groups are of an older revision");
    if outdated > 0 && facts.verdict.acceptance == Acceptance::Accepted {
        if rollout.paused {
            let text = format!("{text}; set rollout.paused to false to replace them");
            return Some(no(reason::PAUSED, text));
        }
        if facts.overdue {
            return Some(no(reason::PROGRESS_DEADLINE_EXCEEDED, late(facts, &text)));
        }
        let text = waits_for(facts, text) + &held(facts);
        return Some(yes(reason::ROLLING_OUT, text));
    }
    facts.overdue.then(|| {
        let text = "not all groups of the new revision serve";
        no(reason::PROGRESS_DEADLINE_EXCEEDED, late(facts, text))
    })
}

/// What a rollout waits for before it replaces more.
fn waits_for(facts: &Facts<'_>, text: String) -> String {
    if let Some(trial) = &facts.verdict.trial {
        return format!("{text}; there is no room for new groups beside them, so {trial}");
    }
    let (ready, desired) = (facts.ready, facts.verdict.desired);
    let most = facts.deployment.object.spec.rollout.max_unavailable;
    let at_floor = ready > 0
        && ready <= desired - most
        && wanted(facts).all(|row| row.view.ready || row.view.spec().revision == facts.verdict.revision);
    if at_floor {
        let full = match facts.verdict.no_room.is_empty() {
            true => "",
            false => {
                "; there is no room for a new group beside them: add nodes or free some, or raise rollout.maxUnavailable"
            }
        };
        return format!(
            "{text}; {ready} of {desired} groups serve, so replacing more waits until others serve (rollout.maxUnavailable {most}){full}"
        );
    }
    text
}

fn going(facts: &Facts<'_>) -> Option<Finding> {
    let any = facts.rows.iter().any(|row| !row.view.wanted());
    any.then(|| yes(reason::SCALING_DOWN, "groups finish what they run and go"))
}

fn unaccepted(facts: &Facts<'_>) -> Option<Finding> {
    let change = "waits for the specification to change";
    Some(match &facts.verdict.acceptance {
        Acceptance::Inspecting(_) => yes(reason::INSPECTING, "reading the checkpoint's headers"),
        Acceptance::Unreadable(_) => no(
            reason::SOURCE_UNREADABLE,
            "waits for the source or the specification to change",
        ),
        Acceptance::Refused(_) => no(reason::DOES_NOT_FIT, change),
        Acceptance::NoBackend(_) => no(reason::NO_BACKEND, change),
        Acceptance::PolicyRefused(_) => no(reason::POLICY_REFUSED, change),
        Acceptance::NoRevision(_) => no(reason::REVISION_UNKNOWN, change),
        Acceptance::Accepted => return None,
    })
}

fn moving(facts: &Facts<'_>) -> Option<Finding> {
    let row = wanted(facts).find(|row| row.view.spec().disrupted_since.is_some())?;
    let missing = facts.verdict.no_room_to_move.get(&row.view.key.name);
    let detail = missing.map_or_else(
        || row.status.message.clone(),
        |missing| format!("no room for a successor: {missing}"),
    );
    let text = format!("group {}: {detail}{}", row.view.key.name, held(facts));
    Some(yes(reason::MOVING, text))
}

/// That groups whose time on their nodes is over stay there, why, and the ways out.
fn held(facts: &Facts<'_>) -> String {
    let Some(name) = facts.verdict.held.first() else {
        return String::new();
    };
    let most = facts.deployment.object.spec.rollout.max_unavailable;
    format!(
        "; group {name} does not leave its node after disruption.deadline either, as rollout.maxUnavailable {most} lets no more of the {} groups go \
         before others serve: add nodes or free some, or raise rollout.maxUnavailable",
        facts.verdict.desired
    )
}

/// What is missing until as many groups serve as are wanted.
fn toward_ready(facts: &Facts<'_>) -> Finding {
    if facts.ready >= facts.verdict.desired {
        return at_rest(facts);
    }
    let phases = || wanted(facts).map(|row| row.status.phase);
    if phases().any(|phase| phase == GroupPhase::Recovering) {
        yes(reason::RECOVERING, "a member is being replaced")
    } else if !facts.verdict.provisioning.is_empty() {
        yes(reason::PROVISIONING, "nodes are asked for")
    } else if !facts.verdict.no_room.is_empty() {
        no(reason::NO_ROOM, "waits for room; nothing is held meanwhile")
    } else if let Some(row) = wanted(facts).find(|row| row.status.phase == GroupPhase::Failed) {
        no(
            failed(row),
            "waits until failures are old enough to be forgiven, or for the specification to change",
        )
    } else if phases().any(|phase| matches!(phase, GroupPhase::Pending | GroupPhase::Placing)) {
        yes(reason::PLACING, "pods are being placed")
    } else {
        yes(reason::STARTING, "groups start")
    }
}

fn at_rest(facts: &Facts<'_>) -> Finding {
    let (_, stay) = older(facts);
    if stay == 0 {
        return no(reason::AS_WANTED, "");
    }
    let partition = facts.deployment.object.spec.rollout.partition;
    no(
        reason::CANARY,
        format!(
            "{stay} groups keep an older revision beside the new one (rollout.partition {partition}): lower it to go on, or change the specification back"
        ),
    )
}

/// That a rollout got no further, why as far as is known, and the ways out.
fn late(facts: &Facts<'_>, text: &str) -> String {
    let rollout = &facts.deployment.object.spec.rollout;
    let waits = wanted(facts)
        .find(|row| !row.status.ready && row.view.spec().revision == facts.verdict.revision)
        .filter(|row| !row.status.message.is_empty());
    let detail = waits.map_or_else(String::new, |row| {
        format!("; group {}: {}", row.view.key.name, row.status.message)
    });
    format!(
        "{text}, and the rollout got no further for {} (rollout.progressDeadline){detail}; correct the specification, or set rollout.revision to go back",
        rollout.progress_deadline
    )
}
