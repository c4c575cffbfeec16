//! The pod's state in the text format of Prometheus (OpenMetrics).

use std::fmt;
use std::time::Instant;

use llamero_proto::v1::{Device, RankReport as Rank};
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

/// Numbers of the devices of ranks that have some. What was not measured is left out.
type DeviceFigure = (
    &'static str,
    &'static str,
    fn() -> Unit,
    fn(&Device) -> Option<f64>,
);

fn a_second() -> Unit {
    Unit::Other("bytes_per_second".into())
}

const DEVICES: [DeviceFigure; 5] = [
    (
        "device_memory",
        "Memory of the rank's device",
        || Unit::Bytes,
        |device| Some(device.memory_bytes as f64),
    ),
    (
        "device_read_bandwidth",
        "Bytes a second that reading the device's memory gave before weights were read",
        a_second,
        |device| device.read_bandwidth.map(|bytes| bytes as f64),
    ),
    (
        "device_nominal_bandwidth",
        "Bytes a second that clock and bus of the device's memory promise",
        a_second,
        |device| device.nominal_bandwidth.map(|bytes| bytes as f64),
    ),
    (
        "device_exchange_bandwidth",
        "Bytes a second that the rank gave its peers in the largest exchange of a step, as the group formed",
        a_second,
        |device| device.exchange_bandwidth.map(|bytes| bytes as f64),
    ),
    (
        "device_exchange",
        "Time of the exchange of one row of a step, as the group formed",
        || Unit::Seconds,
        |device| device.exchange_nanos.map(|nanos| nanos as f64 / 1e9),
    ),
];

/// The same for what is counted.
type DeviceCount = (&'static str, &'static str, fn(&Device) -> Option<u64>);

const DEVICE_ERRORS: [DeviceCount; 2] = [
    (
        "device_uncorrected_errors",
        "Memory errors of the device that could not be corrected, since its driver was loaded, as the rank's process began",
        |device| device.uncorrected_errors,
    ),
    (
        "device_faults",
        "Errors of the device that its driver reported since the pod began (Xid)",
        |device| Some(device.faults),
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
        encode_devices(&mut to, &report.ranks)?;
        gauge(
            &mut to,
            "generation",
            "Membership of the group that this pod knows",
            report.generation,
        )?;
        gauge(
            &mut to,
            "group_lost_ranks",
            "Ranks that the group does without, and whose parts of the model the others have taken over",
            u64::try_from(report.lost.len()).unwrap_or(u64::MAX),
        )?;
        if self.pod.leads() {
            let serving = u64::from(report.group_serving);
            gauge(
                &mut to,
                "group_serving",
                "1 while steps of the whole group complete in time",
                serving,
            )?;
            gauge(
                &mut to,
                "longest_sequence_tokens",
                "Tokens of the longest sequence that the group holds now, prompt and answer together; 0 before it has formed",
                report.longest_sequence.into(),
            )?;
            if let Some(load) = self.load() {
                load.encode(&mut to)?;
            }
        }
        Ok(())
    }
}

fn encode_devices(to: &mut DescriptorEncoder<'_>, ranks: &[Rank]) -> fmt::Result {
    let devices: Vec<(String, &Device)> = ranks
        .iter()
        .filter_map(|rank| Some((rank.rank.to_string(), rank.device.as_ref()?)))
        .collect();
    if devices.is_empty() {
        return Ok(());
    }
    let mut infos = to.encode_descriptor("device", "1 for the rank's device", None, MetricType::Gauge)?;
    for (rank, device) in &devices {
        let labels = [
            ("rank", rank.as_str()),
            ("name", &device.name),
            ("id", &device.id),
            ("driver", &device.driver),
        ];
        ConstGauge::new(1_i64).encode(infos.encode_family(&labels)?)?;
    }
    for (name, help, unit, value) in DEVICES {
        let unit = unit();
        let mut family = to.encode_descriptor(name, help, Some(&unit), MetricType::Gauge)?;
        for (rank, device) in &devices {
            if let Some(value) = value(device) {
                ConstGauge::new(value).encode(family.encode_family(&[("rank", rank.as_str())])?)?;
            }
        }
    }
    for (name, help, value) in DEVICE_ERRORS {
        let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (rank, device) in &devices {
            if let Some(value) = value(device) {
                ConstCounter::new(value).encode(family.encode_family(&[("rank", rank.as_str())])?)?;
            }
        }
    }
    Ok(())
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

    use llamero_engine::DeviceReport;

    use super::super::pod::Identity;
    use super::*;
    use crate::link::RankState;

    #[test]
    fn every_rank_has_its_phase() {
        let identity = Identity {
            pod_uid: String::new(),
            group_uid: "g".into(),
            first_rank: 0,
            world: 2,
            fixed: None,
            stall_timeout: Duration::from_secs(1),
        };
        let text = render(&Pod::new(identity, 2, Instant::now()), Instant::now()).unwrap();
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

    /// By the names that the dashboard asks for.
    #[test]
    fn a_rank_on_a_gpu_has_its_figures() {
        let identity = Identity {
            pod_uid: String::new(),
            group_uid: "g".into(),
            first_rank: 4,
            world: 8,
            fixed: None,
            stall_timeout: Duration::from_secs(1),
        };
        let mut pod = Pod::new(identity, 1, Instant::now());
        let none = render(&pod, Instant::now()).unwrap();
        assert!(!none.contains("llamero_device"), "{none}");
        let device = DeviceReport {
            name: "NVIDIA H100".into(),
            id: "GPU-1".into(),
            read_bandwidth: Some(2_950_000_000_000),
            exchange_bandwidth: Some(300_000_000_000),
            exchange_nanos: Some(9_500),
            faults: 2,
            ..DeviceReport::default()
        };
        let state = RankState {
            device: Some(device),
            ..RankState::default()
        };
        pod.ranks[0].state = Some((state, Instant::now()));
        let text = render(&pod, Instant::now()).unwrap();
        for line in [
            "llamero_device{rank=\"4\",name=\"NVIDIA H100\",id=\"GPU-1\",driver=\"\"} 1",
            "llamero_device_read_bandwidth_bytes_per_second{rank=\"4\"} 2950000000000.0",
            "llamero_device_exchange_bandwidth_bytes_per_second{rank=\"4\"} 300000000000.0",
            "llamero_device_exchange_seconds{rank=\"4\"} 0.0000095",
            "llamero_device_faults_total{rank=\"4\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        // What is not known has no line.
        assert!(
            !text.contains("llamero_device_nominal_bandwidth_bytes_per_second{"),
            "{text}"
        );
    }
}
