//! The pod's state in the text format of Prometheus (OpenMetrics).

use std::fmt;
use std::time::Instant;

use llamero_proto::v1::RankReport as Rank;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::pod::Pod;
use crate::link::Load;

/// All metrics of the pod.
///
/// # Errors
/// Only if the text cannot be written to memory.
pub fn render(pod: &Pod, now: Instant) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("llamero");
    registry.register_collector(Box::new(Snapshot {
        pod: pod.clone(),
        now,
    }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// One number of a rank: its name, what it says, its unit and where it stands.
type Figure = (&'static str, &'static str, Option<Unit>, fn(&Rank) -> u64);

const GAUGES: [Figure; 3] = [
    (
        "rank_loaded",
        "Weights of the rank that are in memory",
        Some(Unit::Bytes),
        |rank| rank.loaded_bytes,
    ),
    ("rank_weights", "Weights of the rank", Some(Unit::Bytes), |rank| {
        rank.total_bytes
    }),
    (
        "rank_epoch",
        "Connection attempt within the generation",
        None,
        |rank| rank.epoch,
    ),
];

const COUNTERS: [Figure; 4] = [
    (
        "rank_restarts",
        "How often the rank's process was started again",
        None,
        |rank| u64::from(rank.restarts),
    ),
    (
        "rank_steps_entered",
        "Steps the rank entered within the epoch",
        None,
        |rank| rank.entered,
    ),
    (
        "rank_steps_completed",
        "Steps the rank completed within the epoch",
        None,
        |rank| rank.completed,
    ),
    (
        "rank_layers",
        "Layers that the rank's process computed: it stands still while a step hangs",
        None,
        |rank| rank.layers,
    ),
];

#[derive(Debug)]
struct Snapshot {
    pod: Pod,
    now: Instant,
}

impl Collector for Snapshot {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let report = self.pod.report(self.now);
        encode_phases(&mut to, &report.ranks)?;
        for (name, help, unit, value) in GAUGES {
            let mut family = to.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for rank in &report.ranks {
                let labels = [("rank", rank.rank.to_string())];
                ConstGauge::new(to_i64(value(rank))).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, unit, value) in COUNTERS {
            let mut family = to.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for rank in &report.ranks {
                let labels = [("rank", rank.rank.to_string())];
                ConstCounter::new(value(rank)).encode(family.encode_family(&labels)?)?;
            }
        }
        gauge(
            &mut to,
            "generation",
            "Membership of the group that this pod knows",
            report.generation,
        )?;
        if self.pod.leads() {
            let serving = u64::from(report.group_serving);
            gauge(
                &mut to,
                "group_serving",
                "1 while steps of the whole group complete in time",
                serving,
            )?;
            if let Some(load) = self.load() {
                load.encode(&mut to)?;
            }
        }
        Ok(())
    }
}

fn encode_phases(to: &mut DescriptorEncoder<'_>, ranks: &[Rank]) -> fmt::Result {
    let help = "1 for the phase a rank is in";
    let mut phases = to.encode_descriptor("rank_phase", help, None, MetricType::Gauge)?;
    for rank in ranks {
        let phase = rank.phase().as_str_name().to_ascii_lowercase();
        let labels = [("rank", rank.rank.to_string()), ("phase", phase)];
        ConstGauge::new(1_i64).encode(phases.encode_family(&labels)?)?;
    }
    Ok(())
}

impl Snapshot {
    fn load(&self) -> Option<&Load> {
        self.pod.ranks.first()?.state.as_ref()?.0.load.as_ref()
    }
}

impl Load {
    fn encode(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        gauge(
            to,
            "requests_running",
            "Sequences that are computed",
            self.running.into(),
        )?;
        gauge(to, "requests_waiting", "Sequences that wait", self.waiting.into())?;
        gauge(
            to,
            "kv_blocks_used",
            "KV blocks in use",
            self.kv_blocks_used.into(),
        )?;
        gauge(to, "kv_blocks", "KV blocks in all", self.kv_blocks_total.into())?;
        counter(to, "prompt_tokens", "Prompt tokens taken in", self.prompt_tokens)?;
        counter(to, "output_tokens", "Tokens generated", self.output_tokens)?;
        // Their ratio is the hit rate.
        counter(
            to,
            "prefix_lookup_tokens",
            "Prompt tokens that were looked for in the KV cache",
            self.prefix_lookup_tokens,
        )?;
        counter(
            to,
            "prefix_hit_tokens",
            "Prompt tokens that were found in the KV cache and not computed again",
            self.prefix_hit_tokens,
        )?;
        // Named as those of vLLM. The last divided by the second is the acceptance rate.
        counter(to, "spec_decode_num_drafts", "Rows that had drafts", self.drafts)?;
        counter(
            to,
            "spec_decode_num_draft_tokens",
            "Tokens that were drafted",
            self.draft_tokens,
        )?;
        counter(
            to,
            "spec_decode_num_accepted_tokens",
            "Drafted tokens that were right",
            self.accepted_tokens,
        )
    }
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstGauge::new(to_i64(value));
    metric.encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::pod::Identity;
    use super::*;

    #[test]
    fn every_rank_has_its_phase() {
        let identity = Identity {
            pod_uid: String::new(),
            group_uid: "g".into(),
            first_rank: 0,
            world: 2,
            stall_timeout: Duration::from_secs(1),
        };
        let text = render(&Pod::new(identity, 2), Instant::now()).unwrap();
        assert!(
            text.contains("llamero_rank_phase{rank=\"1\",phase=\"preflight\"} 1"),
            "{text}"
        );
        assert!(text.contains("llamero_rank_loaded_bytes{rank=\"0\"} 0"), "{text}");
        assert!(
            text.contains("llamero_rank_restarts_total{rank=\"0\"} 0"),
            "{text}"
        );
        assert!(text.contains("llamero_group_serving 0"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
