//! A member that was told to stop and has no leader to wait for.

use std::time::Duration;

use llamero_proto::v1::Phase;
use tokio::sync::watch;

use super::pod::Pod;
use crate::link::RankState;

/// Returns once no local rank was part of a connected group for `patience`: a member that was told to stop then has
/// no leader to wait for.
pub async fn orphaned(mut pod: watch::Receiver<Pod>, patience: Duration) {
    let connected = |pod: &Pod| {
        let serving = |state: &(RankState, _)| matches!(state.0.phase(), Phase::Serving | Phase::Draining);
        pod.ranks
            .iter()
            .any(|rank| rank.pid.is_some() && rank.state.as_ref().is_some_and(serving))
    };
    loop {
        if pod.wait_for(|pod| !connected(pod)).await.is_err() {
            return;
        }
        match tokio::time::timeout(patience, pod.wait_for(connected)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
