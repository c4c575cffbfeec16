//! The revisions of a deployment: resolved snapshots, kept in `ControllerRevision`s.
//!
//! A revision is named after the digest of the user's own words, and its snapshot is resolved once: worker image, sizes, what the operator's
//! settings add. All groups of a revision are made from that one snapshot, whenever they are made, so an upgrade of the operator
//! changes no group and mixes nothing; and going back to earlier words finds the earlier snapshot.

use std::collections::BTreeSet;

use llamero_api::{
    group::{GroupTemplate, Transport},
    labels,
};

use crate::{
    observed::{Deployment, Group, Revision},
    plan::{Action, EventKind, Key, Step},
};

/// The snapshot that new groups of this digest are made from; nothing until it is kept. Steps keep, renumber and forget revisions.
/// `resolved`: the snapshot as it would be made now, where the specification can be served; with how the installation wants groups to be reached. Where that
/// is with certificates, a snapshot with plain text is made anew once another was newer or none of its groups is left. What was accepted last
/// and is served stays the snapshot, whatever is found out about it later: other nodes, another image. While a rollout is paused nothing is kept
/// beside what is kept already.
#[must_use]
pub fn snapshot(
    deployment: &Deployment,
    key: &Key,
    digest: &str,
    (resolved, transport): (Option<GroupTemplate>, Transport),
    steps: &mut Vec<Step>,
) -> Option<GroupTemplate> {
    forget(deployment, key, digest, steps);
    let newest = deployment.revisions.iter().map(|r| r.number).max().unwrap_or(0);
    let Some(kept) = deployment.revisions.iter().find(|r| r.digest == digest) else {
        let resolved = resolved?;
        // The newest one that is kept is what new groups are made from meanwhile.
        if deployment.object.spec.rollout.paused && !deployment.revisions.is_empty() {
            return None;
        }
        // A group that is there already shows what an operator which kept no revisions had resolved.
        let shown = deployment.groups.iter().map(|group| &group.object.spec);
        let kept_none = deployment.revisions.is_empty();
        let template = shown
            .clone()
            .find(|spec| spec.revision == digest && (kept_none || !is_outdated(&spec.template, transport)))
            .map_or(resolved, |spec| spec.template.clone());
        steps.push(create(
            deployment,
            key,
            digest,
            newest.saturating_add(1),
            template,
        ));
        return None;
    };
    if resolved.is_none() && !(kept.number == newest && is_served(deployment, digest)) {
        return None;
    }
    let is_plain = |template: &GroupTemplate| is_outdated(template, transport);
    if resolved.is_some() && kept.template.as_ref().is_some_and(is_plain) && !goes_on(deployment, kept) {
        steps.push(delete(key, kept, "its links are plain text, and no new ones are"));
        return None;
    }
    if kept.number < newest && !deployment.object.spec.rollout.paused {
        steps.push(Step {
            action: Action::RenumberRevision {
                deployment: key.clone(),
                name: kept.name.clone(),
                uid: kept.uid.clone(),
                number: newest.saturating_add(1),
            },
            reason: "RolledBackTo",
            message: format!("revision {digest} is the newest again"),
            event: EventKind::Normal,
        });
    }
    match &kept.template {
        Some(template) => Some(template.clone()),
        None => {
            steps.push(delete(key, kept, "its snapshot cannot be read"));
            None
        }
    }
}

/// The snapshot of the revision that `rollout.revision` names, whatever the rest of the specification says now.
///
/// # Errors
/// Why there is none, and which revisions are kept.
pub fn named(
    deployment: &Deployment,
    key: &Key,
    digest: &str,
    transport: Transport,
    steps: &mut Vec<Step>,
) -> Result<GroupTemplate, String> {
    forget(deployment, key, digest, steps);
    let mut kept: Vec<&Revision> = deployment
        .revisions
        .iter()
        .filter(|revision| revision.template.is_some())
        .collect();
    kept.sort_by_key(|revision| std::cmp::Reverse(revision.number));
    let found = kept.iter().find(|revision| revision.digest == digest);
    if let Some((found, mut template)) = found.and_then(|found| Some((found, found.template.clone()?))) {
        if is_outdated(&template, transport) && !goes_on(deployment, found) {
            template.transport = transport;
        }
        return Ok(template);
    }
    let names: Vec<&str> = kept.iter().map(|revision| revision.digest.as_str()).collect();
    Err(format!(
        "rollout.revision is {digest}, which is not kept: choose one of {} (newest first), or remove rollout.revision",
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    ))
}

/// Whether groups are of this digest, which was accepted therefore.
fn is_served(deployment: &Deployment, digest: &str) -> bool {
    let mut groups = deployment.groups.iter();
    groups.any(|group| group.object.spec.revision == digest)
}

/// The revision that was accepted last, and its snapshot.
#[must_use]
pub fn newest(deployment: &Deployment) -> Option<(&str, &GroupTemplate)> {
    let kept = deployment.revisions.iter();
    let kept = kept.filter_map(|revision| Some((revision, revision.template.as_ref()?)));
    let (revision, template) = kept.max_by_key(|(revision, _)| revision.number)?;
    Some((&revision.digest, template))
}

/// Whether groups of this snapshot would be reached in plain text where that is not wanted any more.
fn is_outdated(template: &GroupTemplate, transport: Transport) -> bool {
    template.transport.is_plain() && !transport.is_plain()
}

/// Whether groups with plain text run that are of the newest revision: an upgrade changes nothing about them, so others may join them.
fn goes_on(deployment: &Deployment, kept: &Revision) -> bool {
    let is_newest = deployment
        .revisions
        .iter()
        .all(|other| other.number <= kept.number);
    let runs = |group: &Group| {
        let spec = &group.object.spec;
        spec.revision == kept.digest && spec.template.transport.is_plain()
    };
    is_newest && deployment.groups.iter().any(runs)
}

fn create(deployment: &Deployment, key: &Key, digest: &str, number: i64, template: GroupTemplate) -> Step {
    Step {
        action: Action::CreateRevision {
            deployment: key.clone(),
            deployment_uid: deployment.object.metadata.uid.clone().unwrap_or_default(),
            name: labels::revision_name(&key.name, digest),
            digest: digest.to_owned(),
            number,
            template: Box::new(template),
        },
        reason: "Resolved",
        message: format!("keeping the snapshot of revision {digest}"),
        event: EventKind::None,
    }
}

/// Revisions that no group runs, beyond as many as the user wants kept, oldest first.
fn forget(deployment: &Deployment, key: &Key, digest: &str, steps: &mut Vec<Step>) {
    let used: BTreeSet<&str> = deployment
        .groups
        .iter()
        .map(|group| group.object.spec.revision.as_str())
        .chain([digest])
        .collect();
    let mut unused: Vec<&Revision> = deployment
        .revisions
        .iter()
        .filter(|revision| !used.contains(revision.digest.as_str()))
        .collect();
    unused.sort_by_key(|revision| (revision.number, &revision.name));
    let limit = usize::try_from(deployment.object.spec.revision_history_limit).unwrap_or(0);
    let surplus = unused.len().saturating_sub(limit);
    steps.extend(
        unused
            .iter()
            .take(surplus)
            .map(|revision| delete(key, revision, "revisionHistoryLimit are kept")),
    );
}

fn delete(key: &Key, revision: &Revision, why: &str) -> Step {
    Step {
        action: Action::DeleteRevision {
            deployment: key.clone(),
            name: revision.name.clone(),
            uid: revision.uid.clone(),
        },
        reason: "Forgotten",
        message: format!("deleting the snapshot of revision {}: {why}", revision.digest),
        event: EventKind::None,
    }
}
