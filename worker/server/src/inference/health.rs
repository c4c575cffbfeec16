//! `grpc.health.v1`. SERVING means that the whole group completed a step within the stall time-out, or computes one whose
//! layers move, and that nothing drains: a dead or stuck rank shows, whichever it is.

use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Services;
use crate::rank::report::serves;

/// Services whose health is the group's; the empty name is the server as a whole.
pub const NAMES: [&str; 5] = [
    "",
    "vllm.Inference",
    "vllm.Control",
    "llamero.v1.Completion",
    "llamero.v1.Telemetry",
];

/// How often the group is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// Keep the reported health up to date, for ever.
pub async fn follow(services: Services, reporter: HealthReporter) {
    let mut known = None;
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        let serving = serves(&services.engine, services.model.stall_timeout);
        if known != Some(serving) {
            known = Some(serving);
            tracing::info!(serving, "health");
            let status = if serving {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            for name in NAMES {
                reporter.set_service_status(name, status).await;
            }
        }
        ticks.tick().await;
    }
}
