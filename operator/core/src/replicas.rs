//! The durable number of groups: `spec.replicas`, whoever writes it.
//!
//! Without autoscaling it belongs to the user, an HPA or KEDA. With autoscaling the operator alone writes it, through the scale
//! subresource, before anything is done about it; so a decision is never forgotten. Who wrote the field last is known from
//! `metadata.managedFields`; a default that the API server filled in has no writer.

use llamero_api::{deployment::AutoscalingState, labels::FIELD_MANAGER};

use crate::{
    observed::Deployment,
    time::{self, Millis},
};

/// For how long a foreign write is told.
const TOLD: Millis = 600_000;

/// The number of groups to act upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Groups.
    pub groups: i32,
    /// Field manager of somebody else who changed the number although autoscaling decides it. What they wrote is not acted upon.
    pub foreign_writer: Option<String>,
}

/// What number to act upon.
#[must_use]
pub fn durable(deployment: &Deployment) -> Durable {
    let object = &deployment.object;
    let written = object.spec.replicas;
    let by = |groups| Durable {
        groups,
        foreign_writer: None,
    };
    if object.spec.autoscaling.is_none() {
        return by(written);
    }
    let decided = object
        .status
        .as_ref()
        .filter(|status| status.autoscaling.is_some())
        .map(|status| status.desired_replicas);
    match (deployment.replicas_manager.as_deref(), decided) {
        (Some(FIELD_MANAGER), _) | (_, None) => by(written),
        // An operator that kept its decisions in the status left this object; the default must not count.
        (None, Some(decided)) => by(decided),
        (Some(_), Some(decided)) if decided == written => by(written),
        (Some(writer), Some(decided)) => Durable {
            groups: decided,
            foreign_writer: Some(writer.to_owned()),
        },
    }
}

/// Keeps who wrote the number although autoscaling decides it, for some minutes: by then it is written back.
pub fn remember(state: &mut AutoscalingState, writer: Option<String>, now: Millis) {
    if let Some(writer) = writer {
        state.foreign_writer = Some(writer);
        state.foreign_write_at = Some(time::to_time(now));
        return;
    }
    let at = state.foreign_write_at.take();
    let at = at.map(|at| time::not_ahead(&at, now));
    state.foreign_write_at = at.filter(|at| time::millis(at).saturating_add(TOLD) > now);
    if state.foreign_write_at.is_none() {
        state.foreign_writer = None;
    }
}
