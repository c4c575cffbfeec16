//! From what is observed to what is to be done.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    groups::{self, Context, GroupView, members},
    inspect,
    observed::{Deployment, Node, Observed},
    placement::{Ask, Ledger, Native, Placer},
    plan::{Acceptance, Action, EventKind, Key, Plan, Step, Verdict},
    revision,
    rollout::{self, Target},
    scale::{self, Sight},
    sizing,
    time::{self, Millis},
};

/// What the API lets a deployment ask for.
const MOST_GROUPS: i32 = 1000;

/// Decides about the whole cluster. Total and deterministic; the contract is in the crate's README.
#[must_use]
pub fn decide(observed: &Observed, now: Millis) -> Plan {
    decide_with(observed, now, &Native)
}

/// An ask, whose it is, and the order in which asks are met.
struct Request<'a> {
    deployment: Key,
    view: GroupView<'a>,
    ask: Ask<'a>,
}

impl Request<'_> {
    /// High priority first; then replacements, whose survivors hold accelerators; then by age and name.
    fn order(&self, created: Option<Millis>) -> (Reverse<i32>, bool, Option<Millis>, usize, Key) {
        let whole = self.ask.indices.len() == self.view.members.len();
        (
            Reverse(self.ask.priority),
            whole,
            created,
            self.view.key.name.len(),
            self.view.key.clone(),
        )
    }
}

fn decide_with(observed: &Observed, now: Millis, placer: &dyn Placer) -> Plan {
    let mut plan = Plan::default();
    let nodes: BTreeMap<&str, &Node> = observed
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node))
        .collect();
    let mut deployments: Vec<&Deployment> = observed
        .deployments
        .iter()
        .filter(|d| d.object.metadata.deletion_timestamp.is_none())
        .collect();
    deployments.sort_by_key(|d| Key::of(&d.object.metadata));

    let mut requests = Vec::new();
    for deployment in deployments {
        one(observed, deployment, &nodes, now, &mut plan, &mut requests);
    }
    let created = |key: &Key| {
        let found = observed
            .deployments
            .iter()
            .find(|d| Key::of(&d.object.metadata) == *key);
        found
            .and_then(|d| d.object.metadata.creation_timestamp.as_ref())
            .map(time::millis)
    };
    requests.sort_by_cached_key(|request| request.order(created(&request.deployment)));
    place(observed, requests, placer, now, &mut plan);
    plan
}

fn one<'a>(
    observed: &'a Observed,
    deployment: &'a Deployment,
    nodes: &BTreeMap<&str, &Node>,
    now: Millis,
    plan: &mut Plan,
    requests: &mut Vec<Request<'a>>,
) {
    let object = &deployment.object;
    let key = Key::of(&object.metadata);
    let mut verdict = Verdict {
        revision: revision::digest(&object.spec, object.model_name()),
        ..Verdict::default()
    };
    if !deployment.has_service {
        plan.steps.push(service(deployment, &key));
    }

    let inspection = inspect::inspect(deployment, &key, now, &mut plan.steps);
    plan.next_at = time::earlier(plan.next_at, inspection.next_at);
    let sized = inspection
        .summary()
        .map(|summary| sizing::plan(&object.spec, summary, &observed.nodes));
    verdict.acceptance = match (&sized, &inspection.checkpoint) {
        (Some(sized), _) if sized.fits => Acceptance::Accepted,
        (Some(sized), _) => Acceptance::Refused(sized.message.clone()),
        (None, Some(checkpoint)) => Acceptance::Unreadable(checkpoint.error.clone().unwrap_or_default()),
        (None, None) => Acceptance::Inspecting(inspection.waiting.clone()),
    };
    let template = sized
        .as_ref()
        .filter(|s| s.fits)
        .map(|s| revision::template(object, s, &observed.settings));
    verdict.plan = sized;
    verdict.checkpoint = inspection.checkpoint;

    let views: Vec<GroupView<'a>> = deployment
        .groups
        .iter()
        .map(|group| GroupView::of(group, now))
        .collect();
    wanted(deployment, &views, now, &mut verdict, plan);
    let target = Target {
        revision: verdict.revision.clone(),
        template,
    };
    let going = rollout::fleet(
        deployment,
        &key,
        &views,
        &target,
        verdict.desired,
        now,
        &mut plan.steps,
    );

    let class = object.spec.worker.priority_class_name.as_deref();
    let priority = |class: Option<&str>| match class {
        Some(class) => observed.priority_classes.get(class).copied().unwrap_or(0),
        None => observed.default_priority,
    };
    let context = Context {
        placement: &object.spec.placement,
        recovery: &object.spec.recovery,
        nodes,
        priority: priority(class),
        now,
    };
    for view in views.into_iter().filter(|view| !going.contains(&view.key.name)) {
        let own = Context {
            priority: priority(view.spec().template.worker.priority_class_name.as_deref()),
            ..context
        };
        let needs = groups::needs(&view, &own);
        plan.steps.extend(needs.steps);
        plan.next_at = time::earlier(plan.next_at, needs.next_at);
        if let Some(ask) = needs.ask {
            requests.push(Request {
                deployment: key.clone(),
                view,
                ask,
            });
        }
    }
    plan.verdicts.insert(key, verdict);
}

fn wanted(
    deployment: &Deployment,
    views: &[GroupView<'_>],
    now: Millis,
    verdict: &mut Verdict,
    plan: &mut Plan,
) {
    let object = &deployment.object;
    let Some(autoscaling) = &object.spec.autoscaling else {
        verdict.desired = object.spec.replicas.unwrap_or(1).clamp(0, MOST_GROUPS);
        return;
    };
    let status = object.status.as_ref();
    let sight = Sight {
        // A status that no pass has written yet, or that speaks of a fixed number, knows nothing.
        last: status
            .filter(|s| s.autoscaling.is_some())
            .map(|s| s.desired_replicas),
        state: status.and_then(|s| s.autoscaling.clone()).unwrap_or_default(),
        loads: views
            .iter()
            .filter(|view| view.ready)
            .map(|view| view.group.load)
            .collect(),
        demand: deployment.demand,
    };
    let wanted = scale::wanted(autoscaling, &sight, now);
    verdict.desired = wanted.groups.clamp(0, MOST_GROUPS);
    verdict.autoscaling = Some(wanted.state);
    plan.next_at = time::earlier(plan.next_at, wanted.next_at);
}

/// Meets asks one after another against one ledger. One that cannot be met holds nothing and does not keep others from fitting.
fn place(observed: &Observed, requests: Vec<Request<'_>>, placer: &dyn Placer, now: Millis, plan: &mut Plan) {
    if requests.is_empty() {
        return;
    }
    let mut ledger = Ledger::of(observed);
    for Request {
        deployment,
        view,
        ask,
    } in requests
    {
        match placer.place(&ledger, &ask) {
            Ok(assignments) => {
                for assignment in &assignments {
                    ledger.reserve(&assignment.node, &ask.request);
                }
                plan.steps.push(members::assign(&view, &assignments, now));
            }
            Err(missing) => {
                if let Some(verdict) = plan.verdicts.get_mut(&deployment) {
                    verdict.no_room.insert(view.key.name.clone(), missing.0);
                }
            }
        }
    }
}

fn service(deployment: &Deployment, key: &Key) -> Step {
    Step {
        action: Action::ApplyService {
            deployment: key.clone(),
            deployment_uid: deployment.object.metadata.uid.clone().unwrap_or_default(),
        },
        reason: "Exposed",
        message: "a Service in front of the leaders".to_owned(),
        event: EventKind::None,
    }
}
