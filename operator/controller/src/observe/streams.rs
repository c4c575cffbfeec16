//! Messages of workers and gateways, as the decisions take them.

use std::collections::HashMap;

use llamero_api::group::{DeviceStatus, RankPhase};
use llamero_core::observed;
use llamero_proto::v1;

use crate::links::Received;

/// A supervisor's report. Counters that do not fit are cut: they only serve comparison and display.
#[must_use]
pub fn report(received: &Received<v1::PodReport>) -> observed::Report {
    let report = &received.message;
    observed::Report {
        received_at: received.at.as_millisecond(),
        alive_at: received
            .broken_at
            .map_or(observed::OPEN, |at| at.as_millisecond()),
        generation: signed(report.generation),
        ranks: report.ranks.iter().map(rank).collect(),
        serving: report.group_serving,
        draining: report.draining,
        longest_sequence: i64::from(report.longest_sequence),
    }
}

fn rank(rank: &v1::RankReport) -> observed::Rank {
    observed::Rank {
        rank: small(rank.rank),
        phase: phase(rank.phase()),
        loaded_bytes: signed(rank.loaded_bytes),
        total_bytes: signed(rank.total_bytes),
        read_bytes: signed(rank.read_bytes),
        epoch: signed(rank.epoch),
        entered: signed(rank.entered),
        completed: signed(rank.completed),
        idle_millis: rank.idle_millis.map(signed),
        pid: small(rank.pid),
        restarts: small(rank.restarts),
        last_exit: rank.last_exit.as_ref().map(exit),
        unusable: rank
            .last_exit
            .as_ref()
            .filter(|exit| exit.kind() == v1::ExitKind::Unusable)
            .map(|exit| exit.message.clone()),
        layers: signed(rank.layers),
        still_millis: rank.still_millis.map(signed),
        content_identity: rank.content_identity.clone(),
        numerics: rank.numerics.clone(),
        device: rank.device.as_ref().map(device),
        message: rank.message.clone(),
        times: rank.times.as_ref().map(times).unwrap_or_default(),
    }
}

fn times(times: &v1::PhaseTimes) -> observed::PhaseTimes {
    observed::PhaseTimes {
        preflight: times.preflight_millis.map(signed),
        loading: times.loading_millis.map(signed),
        connecting: times.connecting_millis.map(signed),
        warming: times.warming_millis.map(signed),
    }
}

/// A device in words that change only when what was measured does: a group measures when it forms.
fn device(device: &v1::Device) -> DeviceStatus {
    let giga = |bytes: u64| match bytes as f64 / 1e9 {
        few @ ..10.0 => format!("{few:.2}"),
        many => format!("{many:.0}"),
    };
    let read = |read: u64| match device.nominal_bandwidth {
        Some(nominal) => format!("{} of {} GB/s", giga(read), giga(nominal)),
        None => format!("{} GB/s", giga(read)),
    };
    let exchange = |bytes: u64| {
        let nanos = device.exchange_nanos.unwrap_or(0);
        format!("{} GB/s, {:.1} us", giga(bytes), nanos as f64 / 1e3)
    };
    DeviceStatus {
        name: device.name.clone(),
        id: device.id.clone(),
        driver: device.driver.clone(),
        memory: format!("{:.1} GiB", device.memory_bytes as f64 / f64::from(1u32 << 30)),
        read_bandwidth: device.read_bandwidth.map(read),
        exchange: device.exchange_bandwidth.map(exchange),
        uncorrected_errors: device.uncorrected_errors.map(signed),
        last_fault: device.last_fault.map(i64::from),
        warning: device.warning.clone(),
    }
}

fn phase(phase: v1::Phase) -> RankPhase {
    match phase {
        v1::Phase::Unspecified => RankPhase::Unknown,
        v1::Phase::Preflight => RankPhase::Preflight,
        v1::Phase::Loading => RankPhase::Loading,
        v1::Phase::Connecting => RankPhase::Connecting,
        v1::Phase::Warming => RankPhase::Warming,
        v1::Phase::Serving => RankPhase::Serving,
        v1::Phase::Draining => RankPhase::Draining,
        v1::Phase::Failed => RankPhase::Failed,
    }
}

fn exit(exit: &v1::RankExit) -> String {
    let how = match (exit.code, exit.signal) {
        (_, Some(signal)) => format!("ended by signal {signal}"),
        (Some(code), None) => format!("ended with code {code}"),
        (None, None) => "ended".to_owned(),
    };
    if exit.message.is_empty() {
        how
    } else {
        format!("{how}: {}", exit.message)
    }
}

/// A leader's load.
#[must_use]
pub fn load(received: &Received<v1::LoadSample>) -> observed::Load {
    observed::Load {
        running: received.message.running,
        waiting: received.message.waiting,
        received_at: received.at.as_millisecond(),
    }
}

/// What all gateways hold, summed by deployment.
///
/// While a gateway has not spoken nobody can say that there is no demand, so what is summed then counts as stale; unless somebody already
/// waits, which is enough to know.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// By namespace and name.
    sums: HashMap<(String, String), observed::Demand>,
    /// What is true of a deployment that no gateway mentions; absent when there is no gateway.
    none: Option<observed::Demand>,
    silent: bool,
}

impl Demands {
    /// `gateways` holds one entry for each ready gateway, without a message where none has come yet. A model that a gateway does not mention
    /// has no demand there.
    #[must_use]
    pub fn of(gateways: &[Option<Received<v1::DemandSample>>]) -> Self {
        let spoken = || gateways.iter().flatten();
        let oldest = spoken().map(|received| received.at.as_millisecond()).min();
        let none = observed::Demand {
            received_at: oldest.unwrap_or(0),
            ..observed::Demand::default()
        };
        let mut sums: HashMap<(String, String), observed::Demand> = HashMap::new();
        for model in spoken().flat_map(|received| &received.message.models) {
            let sum = sums
                .entry((model.namespace.clone(), model.name.clone()))
                .or_insert(none);
            sum.held = sum.held.saturating_add(model.held);
            sum.in_flight = sum.in_flight.saturating_add(model.in_flight);
            sum.total = sum.total.saturating_add(model.total);
        }
        Self {
            sums,
            none: (!gateways.is_empty()).then_some(none),
            silent: gateways.iter().any(Option::is_none),
        }
    }

    /// The demand for one deployment; absent when no gateway is known.
    #[must_use]
    pub fn for_deployment(&self, namespace: &str, name: &str) -> Option<observed::Demand> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut sum = self.sums.get(&key).copied().or(self.none)?;
        if self.silent && sum.held == 0 {
            sum.received_at = 0;
        }
        Some(sum)
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn small(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn demand(
        gateways: &[Option<Received<v1::DemandSample>>],
        namespace: &str,
        name: &str,
    ) -> Option<observed::Demand> {
        Demands::of(gateways).for_deployment(namespace, name)
    }

    fn at<M>(seconds: i64, message: M) -> Received<M> {
        Received {
            message,
            at: Timestamp::from_second(seconds).unwrap(),
            broken_at: None,
        }
    }

    fn gateway(seconds: i64, models: &[(&str, u32, u32)]) -> Option<Received<v1::DemandSample>> {
        let models = models
            .iter()
            .map(|&(name, held, in_flight)| v1::ModelDemand {
                namespace: "n".into(),
                name: name.into(),
                held,
                in_flight,
                total: 9,
            })
            .collect();
        Some(at(
            seconds,
            v1::DemandSample {
                unix_millis: 0,
                models,
            },
        ))
    }

    #[test]
    fn demand_is_summed_and_as_old_as_its_oldest_part() {
        let gateways = [
            gateway(20, &[("a", 1, 2), ("b", 7, 7)]),
            gateway(10, &[("a", 3, 4)]),
        ];
        let expected = observed::Demand {
            held: 4,
            in_flight: 6,
            total: 18,
            received_at: 10_000,
        };
        assert_eq!(demand(&gateways, "n", "a"), Some(expected));
        assert_eq!(demand(&gateways, "other", "a").map(|sum| sum.held), Some(0));
        assert_eq!(demand(&[], "n", "a"), None);
    }

    #[test]
    fn a_silent_gateway_makes_zero_demand_stale_but_not_a_waiting_request() {
        let stale = demand(&[gateway(10, &[]), None], "n", "a").unwrap();
        assert_eq!(stale.received_at, 0);
        let waiting = demand(&[gateway(10, &[("a", 1, 0)]), None], "n", "a").unwrap();
        assert_eq!((waiting.held, waiting.received_at), (1, 10_000));
        assert_eq!(demand(&[None], "n", "a").map(|sum| sum.received_at), Some(0));
    }

    /// A device as its rank tells of it, and as the status has it.
    fn gpu() -> (v1::Device, DeviceStatus) {
        let told = v1::Device {
            name: "NVIDIA H100".into(),
            id: "GPU-1".into(),
            driver: "580.1".into(),
            memory_bytes: 80 << 30,
            read_bandwidth: Some(2_950_400_000_000),
            nominal_bandwidth: Some(3_352_000_000_000),
            exchange_bandwidth: Some(1_234_000_000),
            exchange_nanos: Some(9_540),
            uncorrected_errors: Some(0),
            faults: 1,
            last_fault: Some(79),
            warning: "w".into(),
        };
        let written = DeviceStatus {
            name: "NVIDIA H100".into(),
            id: "GPU-1".into(),
            driver: "580.1".into(),
            memory: "80.0 GiB".into(),
            read_bandwidth: Some("2950 of 3352 GB/s".into()),
            exchange: Some("1.23 GB/s, 9.5 us".into()),
            uncorrected_errors: Some(0),
            last_fault: Some(79),
            warning: "w".into(),
        };
        (told, written)
    }

    #[test]
    fn reports_keep_every_field() {
        let (told, written) = gpu();
        let message = v1::PodReport {
            pod_uid: "u".into(),
            group_uid: "g".into(),
            generation: 3,
            group_serving: true,
            draining: false,
            lost: Vec::new(),
            longest_sequence: 700,
            ranks: vec![v1::RankReport {
                rank: 1,
                phase: v1::Phase::Loading.into(),
                loaded_bytes: 5,
                total_bytes: 9,
                generation: 3,
                epoch: 2,
                entered: 12,
                completed: 11,
                idle_millis: Some(40),
                pid: 77,
                restarts: 1,
                last_exit: Some(v1::RankExit {
                    code: None,
                    signal: Some(9),
                    message: "killed".into(),
                    unix_millis: 1,
                    kind: v1::ExitKind::Unusable.into(),
                }),
                message: "reads layer 3".into(),
                read_bytes: 5,
                layers: 360,
                still_millis: Some(20),
                content_identity: "c".into(),
                numerics: "n".into(),
                device: Some(told),
                times: Some(v1::PhaseTimes {
                    preflight_millis: Some(250),
                    ..v1::PhaseTimes::default()
                }),
            }],
        };
        let expected = observed::Report {
            received_at: 8_000,
            alive_at: observed::OPEN,
            generation: 3,
            serving: true,
            draining: false,
            longest_sequence: 700,
            ranks: vec![observed::Rank {
                rank: 1,
                phase: RankPhase::Loading,
                loaded_bytes: 5,
                total_bytes: 9,
                read_bytes: 5,
                epoch: 2,
                entered: 12,
                completed: 11,
                idle_millis: Some(40),
                pid: 77,
                restarts: 1,
                last_exit: Some("ended by signal 9: killed".into()),
                unusable: Some("killed".into()),
                layers: 360,
                still_millis: Some(20),
                content_identity: "c".into(),
                numerics: "n".into(),
                device: Some(written),
                message: "reads layer 3".into(),
                times: observed::PhaseTimes {
                    preflight: Some(250),
                    ..observed::PhaseTimes::default()
                },
            }],
        };
        let mut received = at(8, message);
        assert_eq!(report(&received), expected);
        received.broken_at = Some(received.at);
        assert_eq!(report(&received).alive_at, 8_000);
    }
}
