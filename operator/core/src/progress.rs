//! How far a rollout is, and since when: what `rollout.progressDeadline` is measured by.

use llamero_api::{LlamaDeployment, deployment::RolloutProgress};

use crate::{
    plan::{Acceptance, Verdict},
    rollout,
    status::Row,
    time::{self, Millis},
};

/// How far the rollout of a deployment is; nothing while there is none or it is paused. The time stays while nothing of it moves.
#[must_use]
pub fn of(
    object: &LlamaDeployment,
    verdict: &Verdict,
    rows: &[Row<'_>],
    now: Millis,
) -> Option<RolloutProgress> {
    let wanted = || rows.iter().filter(|row| row.view.wanted());
    let partition = object.spec.rollout.partition;
    let kept = rollout::kept(rows.iter().map(|row| &row.view), partition, &verdict.revision);
    let older = || wanted().filter(|row| row.view.spec().revision != verdict.revision);
    // What a canary leaves alone is not waited for.
    let outdated = older().filter(|row| !kept.contains(&row.view.key.name)).count();
    let stay = older().count() - outdated;
    let updated: Vec<&Row<'_>> = wanted()
        .filter(|row| row.view.spec().revision == verdict.revision)
        .collect();
    let ready = updated.iter().filter(|row| row.status.ready).count();
    let desired = usize::try_from(verdict.desired).unwrap_or(0).saturating_sub(stay);
    let status = object.status.as_ref();
    let before = status.and_then(|status| status.rollout.as_ref());
    let begins = outdated > 0 || status.is_some_and(|status| status.revision != verdict.revision);
    // Where old groups go first, what was reported tells that it is not over.
    let over = outdated == 0 && ready >= desired;
    let rolls = (begins || before.is_some()) && !over;
    if verdict.acceptance != Acceptance::Accepted || object.spec.rollout.paused || !rolls {
        return None;
    }
    let bytes = updated
        .iter()
        .map(|row| row.status.loaded_bytes)
        .fold(0i64, i64::saturating_add);
    let mark = format!(
        "revision {}: {outdated} older groups, {} of {desired} new ones, {ready} serve, {bytes} bytes loaded",
        verdict.revision,
        updated.len()
    );
    let since = before.filter(|before| before.mark == mark).map_or_else(
        || time::to_time(now),
        |before| time::not_ahead(&before.since, now),
    );
    Some(RolloutProgress { mark, since })
}

/// When the rollout that was last reported is overdue.
#[must_use]
pub fn deadline(object: &LlamaDeployment) -> Option<Millis> {
    let progress = object.status.as_ref()?.rollout.as_ref()?;
    let deadline = object.spec.rollout.progress_deadline.millis();
    Some(time::millis(&progress.since).saturating_add(deadline))
}

/// Whether it got no further within `rollout.progressDeadline`.
#[must_use]
pub fn overdue(object: &LlamaDeployment, progress: Option<&RolloutProgress>, now: Millis) -> bool {
    let deadline = object.spec.rollout.progress_deadline.millis();
    progress.is_some_and(|progress| time::millis(&progress.since).saturating_add(deadline) <= now)
}
