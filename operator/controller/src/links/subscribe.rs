//! What the operator subscribes to.

use llamero_proto::v1;
use tonic::{Status, Streaming, transport::Channel};

/// A server-streaming call whose latest message is of interest.
pub trait Subscribe: Send + Sync + 'static {
    /// Message of the stream.
    type Message: Clone + Send + Sync + 'static;

    /// Opens the stream.
    fn subscribe(channel: Channel) -> impl Future<Output = Result<Streaming<Self::Message>, Status>> + Send;
}

/// The ranks of a worker pod.
#[derive(Debug)]
pub struct RankStream;

impl Subscribe for RankStream {
    type Message = v1::PodReport;

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

    async fn subscribe(channel: Channel) -> Result<Streaming<Self::Message>, Status> {
        let mut client = v1::demand_client::DemandClient::new(channel);
        Ok(client.watch(v1::DemandRequest {}).await?.into_inner())
    }
}
