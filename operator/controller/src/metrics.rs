//! Prometheus metrics.

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use llamero_api::group::GroupPhase;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

const PHASES: [GroupPhase; 9] = [
    GroupPhase::Pending,
    GroupPhase::Placing,
    GroupPhase::Starting,
    GroupPhase::Loading,
    GroupPhase::Forming,
    GroupPhase::Serving,
    GroupPhase::Recovering,
    GroupPhase::Draining,
    GroupPhase::Failed,
];

type Labels<const N: usize> = [(&'static str, String); N];

/// Metrics of the operator. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Time of reconcile passes; effects go on beside them.
    pub pass_seconds: Histogram,
    /// Passes that were cut short because the lease was lost.
    pub passes_cut: Counter,
    /// Effects by kind and result (`ok`, `conflict`, `error`).
    pub effects: Family<Labels<2>, Counter>,
    /// Groups by phase.
    pub groups: Family<Labels<1>, Gauge>,
    /// LlamaDeployments.
    pub deployments: Gauge,
    /// Groups that serve.
    pub ready_groups: Gauge,
    /// 1 while this process holds the lease.
    pub leading: Gauge,
    /// Streams by kind and state (`open`, `wanted`).
    pub streams: Family<Labels<2>, Gauge>,
    /// Passes after which the caches did not show our own writes in time.
    pub stale_caches: Counter,
    /// Unix time of the last complete pass.
    pub last_pass: Gauge<f64, AtomicU64>,
    /// 1 while certificates can be given out.
    pub enrollable: Gauge,
    /// Unix time at which the certificate authority ends.
    pub authority_end: Gauge,
    /// Unix time at which this operator's own certificate ends.
    pub certificate_end: Gauge,
    /// Answers to pods that enrol, by result (`ok`, `refused`, `unavailable`).
    pub enrolments: Family<Labels<1>, Counter>,
}

impl Metrics {
    /// The metrics, registered.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            pass_seconds: Histogram::new(exponential_buckets(0.000_01, 2.0, 20)),
            passes_cut: Counter::default(),
            effects: Family::default(),
            groups: Family::default(),
            deployments: Gauge::default(),
            ready_groups: Gauge::default(),
            leading: Gauge::default(),
            streams: Family::default(),
            stale_caches: Counter::default(),
            last_pass: Gauge::default(),
            enrollable: Gauge::default(),
            authority_end: Gauge::default(),
            certificate_end: Gauge::default(),
            enrolments: Family::default(),
        };
        let all = registry.sub_registry_with_prefix("llamero");
        all.register_with_unit(
            "reconcile",
            "Time of reconcile passes; effects go on beside them",
            Unit::Seconds,
            metrics.pass_seconds.clone(),
        );
        all.register(
            "reconcile_cut",
            "Passes cut short because the lease was lost",
            metrics.passes_cut.clone(),
        );
        all.register("effects", "Effects by kind and result", metrics.effects.clone());
        all.register("groups", "Groups by phase", metrics.groups.clone());
        all.register("deployments", "LlamaDeployments", metrics.deployments.clone());
        all.register("ready_groups", "Groups that serve", metrics.ready_groups.clone());
        all.register(
            "leading",
            "1 while this process holds the lease",
            metrics.leading.clone(),
        );
        all.register(
            "streams",
            "gRPC streams to workers and gateways by kind and state",
            metrics.streams.clone(),
        );
        all.register(
            "stale_caches",
            "Passes after which the caches did not show our own writes in time",
            metrics.stale_caches.clone(),
        );
        all.register_with_unit(
            "last_reconcile",
            "Unix time of the last complete pass",
            Unit::Seconds,
            metrics.last_pass.clone(),
        );
        metrics.register_identities(all);
        metrics
    }

    fn register_identities(&self, all: &mut Registry) {
        all.register(
            "enrollable",
            "1 while certificates can be given out",
            self.enrollable.clone(),
        );
        all.register_with_unit(
            "authority_end",
            "Unix time at which the certificate authority ends",
            Unit::Seconds,
            self.authority_end.clone(),
        );
        all.register_with_unit(
            "certificate_end",
            "Unix time at which this operator's own certificate ends",
            Unit::Seconds,
            self.certificate_end.clone(),
        );
        all.register(
            "enrolments",
            "Answers to pods that enrol by result",
            self.enrolments.clone(),
        );
    }

    /// Counts an answer to a pod that enrols.
    pub fn enrolment(&self, result: &str) {
        self.enrolments
            .get_or_create(&[("result", result.to_owned())])
            .inc();
    }

    /// Sets the numbers of groups by phase, and of those that serve: `groups` has the phase of each and whether it serves.
    pub fn count_groups(&self, groups: impl Iterator<Item = (GroupPhase, bool)>) {
        let mut counts: BTreeMap<&str, i64> = PHASES.iter().map(|phase| (phase.as_str(), 0)).collect();
        let mut ready = 0;
        for (phase, serves) in groups {
            *counts.entry(phase.as_str()).or_default() += 1;
            ready += i64::from(serves);
        }
        for (phase, count) in counts {
            self.groups
                .get_or_create(&[("phase", phase.to_owned())])
                .set(count);
        }
        self.ready_groups.set(ready);
    }

    /// Counts an effect.
    pub fn effect(&self, kind: &str, result: &str) {
        self.effects
            .get_or_create(&[("kind", kind.to_owned()), ("result", result.to_owned())])
            .inc();
    }

    /// Notes how many streams of a kind are wanted and open.
    pub fn stream_counts(&self, kind: &str, (wanted, open): (usize, usize)) {
        for (state, count) in [("wanted", wanted), ("open", open)] {
            let labels = [("kind", kind.to_owned()), ("state", state.to_owned())];
            self.streams
                .get_or_create(&labels)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_exposed_by_name_and_label() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.effect("CreatePod", "ok");
        metrics.enrolment("refused");
        metrics.authority_end.set(7);
        metrics.stream_counts("ranks", (2, 1));
        metrics.pass_seconds.observe(0.1);
        metrics.count_groups([(GroupPhase::Serving, true)].into_iter());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "llamero_effects_total{kind=\"CreatePod\",result=\"ok\"} 1",
            "llamero_streams{kind=\"ranks\",state=\"open\"} 1",
            "llamero_reconcile_seconds_count 1",
            "llamero_groups{phase=\"Serving\"} 1",
            "llamero_groups{phase=\"Pending\"} 0",
            "llamero_ready_groups 1",
            "llamero_enrolments_total{result=\"refused\"} 1",
            "llamero_authority_end_seconds 7",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
