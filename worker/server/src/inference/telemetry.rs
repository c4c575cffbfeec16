//! `llamero.v1.Telemetry`: load of the group, for routing and scaling.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _};
use llamero_engine::runtime::load::BOUNDS;
use llamero_engine::runtime::{EngineHandle, HistogramSnapshot};
use llamero_proto::v1::telemetry_server::Telemetry;
use llamero_proto::v1::{Histogram, LoadRequest, LoadSample};
use tokio_stream::wrappers::IntervalStream;
use tonic::{Request, Response, Status};

use super::Services;
use crate::supervisor::last_words::unix_millis;

const USUAL_MILLIS: u64 = 1_000;
const SHORTEST_MILLIS: u64 = 100;

#[tonic::async_trait]
impl Telemetry for Services {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<LoadSample, Status>> + Send>>;

    async fn watch(&self, request: Request<LoadRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let millis = match u64::from(request.into_inner().interval_millis) {
            0 => USUAL_MILLIS,
            millis @ SHORTEST_MILLIS.. => millis,
            millis => {
                return Err(Status::invalid_argument(format!(
                    "interval_millis is {millis}; ask for at least {SHORTEST_MILLIS}, or 0 for {USUAL_MILLIS}"
                )));
            }
        };
        let engine = self.engine.clone();
        let ticks = IntervalStream::new(tokio::time::interval(Duration::from_millis(millis)));
        let samples = ticks.map(move |_| Ok(sample(&engine, SystemTime::now())));
        let closing = self.closing.clone().cancelled_owned();
        Ok(Response::new(Box::pin(samples.take_until(closing))))
    }
}

fn sample(engine: &EngineHandle, now: SystemTime) -> LoadSample {
    let load = engine.load();
    LoadSample {
        unix_millis: unix_millis(now),
        running: load.running,
        waiting: load.waiting,
        kv_blocks_used: load.kv_blocks_used,
        kv_blocks_total: load.kv_blocks_total,
        steps: load.steps,
        prompt_tokens: load.prompt_tokens,
        output_tokens: load.output_tokens,
        time_to_first_token: Some(histogram(load.time_to_first_token)),
        inter_token_latency: Some(histogram(load.inter_token_latency)),
        draining: load.draining,
        prefix_lookup_tokens: load.prefix_lookup_tokens,
        prefix_hit_tokens: load.prefix_hit_tokens,
        draft_tokens: load.draft_tokens,
        accepted_tokens: load.accepted_tokens,
        adapters: engine
            .adapters()
            .into_iter()
            .map(|adapter| adapter.name)
            .collect(),
    }
}

fn histogram(snapshot: HistogramSnapshot) -> Histogram {
    Histogram {
        upper_bounds_seconds: BOUNDS.to_vec(),
        cumulative_counts: snapshot.cumulative,
        count: snapshot.count,
        sum_seconds: snapshot.sum_seconds,
    }
}
