//! What the operator subscribes to.

use std::collections::BTreeSet;

use llamero_proto::v1;
use tonic::{Status, Streaming, transport::Channel};

/// A server-streaming call whose latest message is of interest.
pub trait Subscribe: Send + Sync + 'static {
    /// Message of the stream.
    type Message: Clone + Send + Sync + 'static;

    /// Whether a message says anything beside the one before that somebody must act upon at once.
    fn means(before: &Self::Message, after: &Self::Message) -> bool;

    /// Opens the stream.
    fn subscribe(channel: Channel) -> impl Future<Output = Result<Streaming<Self::Message>, Status>> + Send;
}

/// The ranks of a worker pod.
#[derive(Debug)]
pub struct RankStream;

impl Subscribe for RankStream {
    type Message = v1::PodReport;

    fn means(before: &v1::PodReport, after: &v1::PodReport) -> bool {
        without_counters(before) != without_counters(after)
    }

    async fn subscribe(channel: Channel) -> Result<Streaming<Self::Message>, Status> {
        let mut client = v1::rank_control_client::RankControlClient::new(channel);
        Ok(client.watch(v1::WatchRequest {}).await?.into_inner())
    }
}

/// The load of a group, from its leader.
#[derive(Debug)]
pub struct LoadStream;

impl Subscribe for LoadStream {
    type Message = v1::LoadSample;

    /// Autoscaling looks at samples when it is due.
    fn means(_: &v1::LoadSample, _: &v1::LoadSample) -> bool {
        false
    }

    async fn subscribe(channel: Channel) -> Result<Streaming<Self::Message>, Status> {
        let mut client = v1::telemetry_client::TelemetryClient::new(channel);
        Ok(client
            .watch(v1::LoadRequest {
                interval_millis: 1000,
            })
            .await?
            .into_inner())
    }
}

/// The demand that a gateway sees.
#[derive(Debug)]
pub struct DemandStream;

impl Subscribe for DemandStream {
    type Message = v1::DemandSample;

    /// Who waits must not wait for the next look.
    fn means(before: &v1::DemandSample, after: &v1::DemandSample) -> bool {
        let waiting = |sample: &v1::DemandSample| -> BTreeSet<(String, String)> {
            let held = sample.models.iter().filter(|model| model.held > 0);
            held.map(|model| (model.namespace.clone(), model.name.clone()))
                .collect()
        };
        waiting(before) != waiting(after)
    }

    async fn subscribe(channel: Channel) -> Result<Streaming<Self::Message>, Status> {
        let mut client = v1::demand_client::DemandClient::new(channel);
        Ok(client.watch(v1::DemandRequest {}).await?.into_inner())
    }
}

/// All of a report but what moves all the time.
fn without_counters(report: &v1::PodReport) -> v1::PodReport {
    let mut report = report.clone();
    for rank in &mut report.ranks {
        (rank.entered, rank.completed, rank.layers) = (0, 0, 0);
        (rank.idle_millis, rank.still_millis) = (None, None);
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_wake_nobody_and_phases_do() {
        let report = |entered, phase: v1::Phase| v1::PodReport {
            ranks: vec![v1::RankReport {
                entered,
                idle_millis: Some(entered),
                phase: phase.into(),
                ..v1::RankReport::default()
            }],
            ..v1::PodReport::default()
        };
        let serving = report(1, v1::Phase::Serving);
        assert!(!RankStream::means(&serving, &report(2, v1::Phase::Serving)));
        assert!(RankStream::means(&serving, &report(1, v1::Phase::Connecting)));
    }

    #[test]
    fn the_first_who_waits_is_noticed_at_once() {
        let sample = |held, in_flight| v1::DemandSample {
            unix_millis: 0,
            models: vec![v1::ModelDemand {
                namespace: "n".into(),
                name: "m".into(),
                held,
                in_flight,
                total: 0,
            }],
        };
        assert!(DemandStream::means(&sample(0, 5), &sample(1, 5)));
        assert!(!DemandStream::means(&sample(1, 5), &sample(2, 9)));
    }
}
