//! About one deployment and its groups.

use std::collections::{BTreeMap, BTreeSet};

use llamero_api::{
    deployment::{Placement, WhenFull},
    group::GroupTemplate,
};

use super::queue::Queued;
use crate::{
    autoscaling::{self, AutoscalerInput},
    backends, children,
    groups::{self, Context, GroupView, disruption, members::REFUSED, provision},
    history,
    inspect::{self, Inspection},
    names::NameOwners,
    observed::{Deployment, Group, Node, Observed, Settings},
    placement::PlacementRequest,
    plan::{Acceptance, Action, EventKind, Key, Plan, Step, Verdict},
    policy, progress, refusals, replicas, revision,
    rollout::{self, Fleet, Target},
    sizing,
    time::{self, Millis},
    volumes::Mounts,
};

/// So long after a member was refused nobody in its namespace asks for nodes: longer than until it is tried again.
const REFUSED_LATELY: Millis = 150_000;

/// What the API lets a deployment ask for.
const MOST_GROUPS: i32 = 1000;

/// What is true for all deployments.
pub(super) struct Cluster<'a> {
    pub(super) observed: &'a Observed,
    pub(super) nodes: &'a BTreeMap<&'a str, &'a Node>,
    pub(super) names: NameOwners<'a>,
    pub(super) now: Millis,
}

/// Steps and verdict of one deployment, and what its groups need from the placer.
pub(super) fn decide<'a>(
    cluster: &Cluster<'a>,
    deployment: &'a Deployment,
    plan: &mut Plan,
    requests: &mut Vec<Queued<'a>>,
) {
    let (object, now) = (&deployment.object, cluster.now);
    let key = Key::of(&object.metadata);
    let mut steps = Vec::new();
    let pinned = object.spec.rollout.revision.as_ref();
    let mut verdict = opened(cluster, deployment, &key);
    let settings = &cluster.observed.settings;
    children::of_deployment(deployment, &key, settings, &mut steps);

    let allowed = policy::check(&object.spec.model.source, &object.spec.worker, settings);
    let inspection = match allowed {
        Ok(()) => inspect::inspect(deployment, &key, settings, now, &mut steps),
        // No pod is made, not even one that only looks.
        Err(_) => inspect::recorded(deployment),
    };
    plan.next_at = time::earlier(plan.next_at, inspection.next_at);
    let resolved = accept(cluster, deployment, inspection, &mut verdict);
    let permitted = permit(allowed, &mut verdict);
    let resolved = permitted.and(resolved);
    let template = match pinned {
        Some(digest) => named(deployment, &key, digest, settings, &mut verdict, &mut steps),
        None => {
            let present = (resolved, settings.transport);
            let kept = history::snapshot(deployment, &key, &verdict.revision, present, &mut steps);
            permitted.and(kept).inspect(|_| goes_on(&mut verdict))
        }
    };
    plan.next_at = time::earlier(plan.next_at, progress::deadline(object).filter(|at| *at > now));

    let views: Vec<GroupView<'a>> = deployment
        .groups
        .iter()
        .map(|group| GroupView::of(group, now))
        .collect();
    let soon = desired(deployment, &key, &views, now, &mut verdict, plan, &mut steps);
    let target = Target {
        groups: verdict.desired,
        soon,
        revision: verdict.revision.clone(),
        made_from: made_from(deployment, &views, &verdict, template.as_ref(), settings),
        template,
    };
    let context = context(cluster, deployment);
    let leaving = views
        .iter()
        .filter(|view| disruption::leaves(view, &context, &object.spec.disruption))
        .map(|view| view.key.name.clone())
        .collect();
    let fleet = Fleet {
        deployment,
        key: &key,
        views: &views,
        target: &target,
        nodes: cluster.nodes,
        unpinned: settings.unpinned,
        now,
    };
    let decided = rollout::decide(&fleet, &leaving, &mut steps);
    verdict.trial = decided.trial;
    verdict.held = decided.held;
    plan.next_at = time::earlier(plan.next_at, decided.next_at);
    let held = refusals::hold_each(&mut steps, &deployment.refusals, now);
    plan.next_at = time::earlier(plan.next_at, held);
    plan.steps.extend(steps);

    let (may_ask, again) = askers(cluster, &object.spec.placement, &key, &views, &verdict);
    plan.next_at = time::earlier(plan.next_at, again);
    let going = decided.going;
    for view in views.into_iter().filter(|view| !going.contains(&view.key.name)) {
        let asks = may_ask.contains(&view.key.name);
        group(cluster, deployment, (&context, asks), view, plan, requests);
    }
    plan.verdicts.insert(key, verdict);
}

/// The verdict as far as nothing need be decided for it.
fn opened(cluster: &Cluster<'_>, deployment: &Deployment, key: &Key) -> Verdict {
    let (object, settings) = (&deployment.object, &cluster.observed.settings);
    let pinned = object.spec.rollout.revision.clone();
    Verdict {
        revision: pinned.unwrap_or_else(|| revision::digest(&object.spec, object.model_name())),
        name_owner: cluster.names.other_owner(object, key),
        refusal: refusals::latest(&deployment.refusals),
        authenticated: !settings.transport.is_plain(),
        unenrollable: settings.unenrollable.clone(),
        definitions: settings.definitions.clone(),
        unpinned: settings.unpinned,
        ..Verdict::default()
    }
}

/// What each of its groups is decided by.
fn context<'a>(cluster: &Cluster<'a>, deployment: &'a Deployment) -> Context<'a> {
    let spec = &deployment.object.spec;
    Context {
        placement: &spec.placement,
        recovery: &spec.recovery,
        nodes: cluster.nodes,
        settings: &cluster.observed.settings,
        disruption: &spec.disruption,
        mounts: Mounts::of(deployment),
        priority: cluster.observed.default_priority,
        may_ask: false,
        now: cluster.now,
    }
}

/// Whether the specification can be served, and what new groups would then be made from.
fn accept(
    cluster: &Cluster<'_>,
    deployment: &Deployment,
    inspection: Inspection,
    verdict: &mut Verdict,
) -> Option<GroupTemplate> {
    let object = &deployment.object;
    let sized = inspection
        .summary()
        .map(|summary| sizing::plan(&object.spec, summary, &cluster.observed.nodes));
    let backend = inspection
        .summary()
        .map_or(Ok(()), |summary| backends::check(&object.spec, summary));
    verdict.acceptance = match (&sized, &inspection.checkpoint, backend) {
        (Some(_), _, Err(why)) => Acceptance::NoBackend(why),
        (Some(sized), _, Ok(())) if sized.fits => Acceptance::Accepted,
        (Some(sized), _, Ok(())) => Acceptance::Refused(sized.message.clone()),
        (None, Some(checkpoint), _) => Acceptance::Unreadable(checkpoint.error.clone().unwrap_or_default()),
        (None, None, _) => Acceptance::Inspecting(inspection.waiting.clone()),
    };
    let template = sized
        .as_ref()
        .filter(|_| verdict.acceptance == Acceptance::Accepted)
        .map(|sized| {
            let checkpoint = inspection.checkpoint.as_ref();
            revision::template(object, sized, checkpoint, &cluster.observed.settings)
        });
    verdict.plan = sized;
    verdict.checkpoint = inspection.checkpoint;
    template
}

/// Takes back what was accepted where the installation does not allow it.
fn permit(allowed: Result<(), String>, verdict: &mut Verdict) -> Option<()> {
    allowed
        .map_err(|why| verdict.acceptance = Acceptance::PolicyRefused(why))
        .ok()
}

/// The kept snapshot is gone on with: what is found out about it later is told, and takes nothing away.
fn goes_on(verdict: &mut Verdict) {
    if let Acceptance::Refused(why) | Acceptance::NoBackend(why) | Acceptance::Unreadable(why) =
        &verdict.acceptance
    {
        verdict.outgrown = Some(why.clone());
        verdict.acceptance = Acceptance::Accepted;
    }
}

/// What missing groups are made from, by revision: what is wanted, but while that is paused or refused what the others are made from.
fn made_from(
    deployment: &Deployment,
    views: &[GroupView<'_>],
    verdict: &Verdict,
    template: Option<&GroupTemplate>,
    settings: &Settings,
) -> Option<(String, GroupTemplate)> {
    let wanted = template.map(|template| (verdict.revision.clone(), template.clone()));
    let refused = matches!(
        verdict.acceptance,
        Acceptance::Refused(_)
            | Acceptance::NoBackend(_)
            | Acceptance::Unreadable(_)
            | Acceptance::Inspecting(_)
            | Acceptance::NoRevision(_)
    );
    let paused = deployment.object.spec.rollout.paused;
    let is_held = paused || (refused && wanted.is_none());
    if !is_held {
        return wanted;
    }
    let present = rollout::present(views).map(|(revision, template)| (revision.to_owned(), template.clone()));
    // What is kept under the name that the user gave, or under that of the specification, is wanted more than what was kept last.
    let kept = wanted
        .clone()
        .filter(|_| deployment.object.spec.rollout.revision.is_some());
    let last = || {
        let (revision, template) = history::newest(deployment).filter(|_| paused)?;
        Some((revision.to_owned(), template.clone()))
    };
    let Some((revision, mut template)) = present.or(kept).or_else(last) else {
        return wanted;
    };
    if views.is_empty() {
        // Nobody is left who speaks as they did when it was kept.
        template.transport = settings.transport;
    }
    // What was allowed when it was kept may not be any more.
    policy::check(&template.source, &template.worker, settings).ok()?;
    Some((revision, template))
}

/// The snapshot that the user wants to go back to. It was served before, so nothing about it depends on what the specification says now.
fn named(
    deployment: &Deployment,
    key: &Key,
    digest: &str,
    settings: &Settings,
    verdict: &mut Verdict,
    steps: &mut Vec<Step>,
) -> Option<GroupTemplate> {
    match history::named(deployment, key, digest, settings.transport, steps) {
        Ok(template) => {
            verdict.acceptance = Acceptance::Accepted;
            // What was allowed when it was kept may not be any more.
            let allowed = policy::check(&template.source, &template.worker, settings);
            permit(allowed, verdict).map(|()| template)
        }
        Err(why) => {
            verdict.acceptance = Acceptance::NoRevision(why);
            None
        }
    }
}

/// How many groups there are to be: the number that stands in `spec.replicas`. What autoscaling recommends is written there first, and is
/// acted upon when it is observed. Returns the number that is about to be written.
fn desired(
    deployment: &Deployment,
    key: &Key,
    views: &[GroupView<'_>],
    now: Millis,
    verdict: &mut Verdict,
    plan: &mut Plan,
    steps: &mut Vec<Step>,
) -> i32 {
    let object = &deployment.object;
    let durable = replicas::durable(deployment);
    verdict.desired = durable.groups.clamp(0, MOST_GROUPS);
    let Some(policy) = &object.spec.autoscaling else {
        return verdict.desired;
    };
    let status = object.status.as_ref();
    let input = AutoscalerInput {
        last: durable.groups,
        state: status.and_then(|s| s.autoscaling.clone()).unwrap_or_default(),
        loads: views
            .iter()
            .filter(|view| view.ready)
            .map(|view| view.group.load)
            .collect(),
        starting: views.iter().any(|view| view.wanted() && !view.ready),
        demand: deployment.demand,
    };
    let recommendation = autoscaling::recommend(policy, &input, now);
    plan.next_at = time::earlier(plan.next_at, recommendation.next_at);
    let groups = recommendation.groups.clamp(0, MOST_GROUPS);
    let mut state = recommendation.state;
    // Writing the number back hides who wrote it before, so that must stand in the status first.
    let untold = durable.foreign_writer.is_some() && input.state.foreign_writer != durable.foreign_writer;
    replicas::remember(&mut state, durable.foreign_writer, now);
    if groups == object.spec.replicas {
        // It stands there already, whoever wrote it.
        verdict.desired = groups;
    } else if !untold {
        steps.push(Step {
            reason: "Rescaled",
            message: format!("{groups} groups instead of {}: {}", durable.groups, state.message),
            action: Action::ScaleDeployment {
                deployment: key.clone(),
                deployment_uid: object.metadata.uid.clone().unwrap_or_default(),
                resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
                replicas: groups,
            },
            event: EventKind::Normal,
        });
    }
    verdict.autoscaling = Some(state);
    groups
}

/// Groups that may ask for nodes, and when to look again where none may for a while: while a quota refuses members in the namespace, against which
/// placeholders count too. Nor may any where older definitions would drop since when nodes are asked for.
fn askers(
    cluster: &Cluster<'_>,
    placement: &Placement,
    key: &Key,
    views: &[GroupView<'_>],
    verdict: &Verdict,
) -> (BTreeSet<String>, Option<Millis>) {
    let observed = cluster.observed;
    if placement.when_full != WhenFull::Provision || observed.settings.definitions.is_some() {
        return (BTreeSet::new(), None);
    }
    let neighbours = observed.deployments.iter().filter(|other| {
        let namespace = other.object.metadata.namespace.as_deref();
        namespace.unwrap_or_default() == key.namespace
    });
    let groups = neighbours.flat_map(|other| &other.groups);
    let free_at = groups.filter_map(|group| refused_until(group, cluster.now)).max();
    if let Some(at) = free_at.filter(|at| *at > cluster.now) {
        return (BTreeSet::new(), Some(at));
    }
    let askers = provision::may_ask(views, verdict.desired, &verdict.revision);
    (askers.map(|view| view.key.name.clone()).collect(), None)
}

/// Until when a group's members, one of which was refused, come first.
fn refused_until(group: &Group, now: Millis) -> Option<Millis> {
    let last = group
        .object
        .spec
        .failures
        .last()
        .filter(|failure| failure.reason == REFUSED);
    let lately = last.map(|failure| time::millis(&time::not_ahead(&failure.time, now)));
    let mut refusals = group.refusals.iter();
    let is_held = refusals.any(|refusal| refusal.target.starts_with("CreatePod "));
    lately
        .max(is_held.then_some(now))
        .map(|at| at.saturating_add(REFUSED_LATELY))
}

/// What one group needs next; steps that were refused a moment ago wait.
fn group<'a>(
    cluster: &Cluster<'a>,
    deployment: &'a Deployment,
    (context, may_ask): (&Context<'_>, bool),
    view: GroupView<'a>,
    plan: &mut Plan,
    requests: &mut Vec<Queued<'a>>,
) {
    let class = view.spec().template.worker.priority_class_name.as_deref();
    let observed = cluster.observed;
    let priority = match class {
        Some(class) => observed.priority_classes.get(class).copied().unwrap_or_default(),
        None => observed.default_priority,
    };
    let context = Context {
        priority,
        may_ask,
        ..*context
    };
    let mut next = groups::next_steps(&view, &context);
    let held = refusals::hold_rest(&mut next.steps, &view.group.refusals, cluster.now);
    plan.next_at = time::earlier(plan.next_at, time::earlier(next.next_at, held));
    plan.steps.extend(next.steps);
    if let Some(request) = next.request {
        requests.push(Queued {
            deployment: Key::of(&deployment.object.metadata),
            view,
            provision: (may_ask && is_helped_by_nodes(&request)).then_some(&deployment.object.spec.placement),
            request,
        });
    }
}

/// Whether more nodes would be any help: not where the node is given.
fn is_helped_by_nodes(request: &PlacementRequest<'_>) -> bool {
    !request.successors && request.volumes.given_node().is_none() && request.is_hopeless().is_none()
}
