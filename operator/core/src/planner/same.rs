//! Which changes mean something. Counters of ranks that go on, and times of messages, do not: whoever decides for another reason finds their
//! latest values.

use std::sync::Arc;

use llamero_api::LlamaDeployment;

use crate::observed::{Demand, Deployment, Group, Load, OPEN, Pod, Rank, Report};

fn same_object<K: PartialEq>(one: &Arc<K>, other: &Arc<K>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

fn same_optional<K: PartialEq>(one: Option<&Arc<K>>, other: Option<&Arc<K>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => same_object(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Of a deployment, all but its groups.
pub(super) fn frame(one: &Deployment, other: &Deployment) -> bool {
    let Deployment {
        object,
        groups: _,
        // A name that is taken makes nobody wait: another one is chosen.
        names_in_use: _,
        claims,
        inspect,
        service,
        network_policy,
        revisions,
        replicas_manager,
        refusals,
        demand,
    } = one;
    demanded(object, demand.as_ref(), other.demand.as_ref())
        && same_object(object, &other.object)
        && same_object(claims, &other.claims)
        && *inspect == other.inspect
        && same_optional(service.as_ref(), other.service.as_ref())
        && same_optional(network_policy.as_ref(), other.network_policy.as_ref())
        && *revisions == other.revisions
        && *replicas_manager == other.replicas_manager
        && *refusals == other.refusals
}

/// How many wait is told; the rest only a number of groups that follows the load depends on.
pub(super) fn demanded(object: &LlamaDeployment, one: Option<&Demand>, other: Option<&Demand>) -> bool {
    let follows = object.spec.autoscaling.is_some();
    let means = |demand: Option<&Demand>| {
        demand.map(|d| {
            (
                d.held,
                follows.then_some((d.in_flight, d.total, d.received_at == 0)),
            )
        })
    };
    means(one) == means(other)
}

pub(super) fn group(one: &Group, other: &Group) -> bool {
    let Group {
        object,
        writing,
        pods,
        placeholders,
        budget,
        refusals,
        load,
    } = one;
    let loaded = |load: &Option<Load>| load.map(|load| (load.running, load.waiting));
    same_object(object, &other.object)
        && same_optional(writing.as_ref(), other.writing.as_ref())
        && same_optional(budget.as_ref(), other.budget.as_ref())
        && *refusals == other.refusals
        && loaded(load) == loaded(&other.load)
        && *placeholders == other.placeholders
        && pods.len() == other.pods.len()
        && pods.iter().zip(&other.pods).all(|(one, other)| pod(one, other))
}

fn pod(one: &Pod, other: &Pod) -> bool {
    let Pod {
        name,
        uid,
        index,
        attempt,
        node,
        gated,
        request,
        phase,
        deletion,
        ready,
        ip,
        evicted,
        pressure,
        exit,
        waiting,
        unschedulable,
        report: said,
        unheard_since,
        // What they are told with moves too.
        scheduled_at: _,
        started_at: _,
    } = one;
    let reports = match (said, &other.report) {
        (Some(one), Some(other)) => report(one, other),
        (one, other) => one.is_none() && other.is_none(),
    };
    reports
        && (uid, name, index, attempt) == (&other.uid, &other.name, &other.index, &other.attempt)
        && (node, gated, phase, deletion) == (&other.node, &other.gated, &other.phase, &other.deletion)
        && *request == other.request
        && (ready, ip, evicted, pressure) == (&other.ready, &other.ip, &other.evicted, &other.pressure)
        && (exit, waiting, unschedulable) == (&other.exit, &other.waiting, &other.unschedulable)
        && *unheard_since == other.unheard_since
}

fn report(one: &Report, other: &Report) -> bool {
    let Report {
        received_at: _,
        alive_at,
        generation,
        ranks,
        serving,
        draining,
        longest_sequence,
    } = one;
    (*alive_at == OPEN) == (other.alive_at == OPEN)
        && (generation, serving, draining) == (&other.generation, &other.serving, &other.draining)
        && *longest_sequence == other.longest_sequence
        && ranks.len() == other.ranks.len()
        && ranks
            .iter()
            .zip(&other.ranks)
            .all(|(one, other)| rank(one, other))
}

fn rank(one: &Rank, other: &Rank) -> bool {
    let Rank {
        rank,
        phase,
        loaded_bytes,
        total_bytes,
        read_bytes,
        epoch,
        entered: _,
        completed: _,
        idle_millis: _,
        pid,
        restarts,
        last_exit,
        unusable,
        layers: _,
        still_millis: _,
        content_identity,
        numerics,
        device,
        message,
        times: _,
    } = one;
    (rank, phase, epoch) == (&other.rank, &other.phase, &other.epoch)
        && (loaded_bytes, total_bytes, read_bytes)
            == (&other.loaded_bytes, &other.total_bytes, &other.read_bytes)
        && (pid, restarts, last_exit, unusable)
            == (&other.pid, &other.restarts, &other.last_exit, &other.unusable)
        && (content_identity, numerics, device, message)
            == (
                &other.content_identity,
                &other.numerics,
                &other.device,
                &other.message,
            )
}
