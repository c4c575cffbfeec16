//! Tells the leader and the state that a slow step is not a hang.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::link::Reports;
use crate::backend::StepProgress;
use crate::mesh::Message;
use crate::runtime::state::StateWatch;

/// The counter is sampled at least this often.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Look at `progress` until `ended` says so: the state hears of every change that is seen, the leader at most once every
/// `pause`.
pub(super) fn watch(
    progress: &StepProgress,
    state: &StateWatch,
    reports: &Reports,
    ended: &Receiver<()>,
    pause: Duration,
) {
    let first = progress.layers();
    let (mut seen, mut told) = (first, first);
    let mut told_at = Instant::now();
    loop {
        if let Ok(()) | Err(RecvTimeoutError::Disconnected) = ended.recv_timeout(pause.min(SAMPLE_INTERVAL)) {
            return;
        }
        let now = progress.layers();
        if now != seen {
            seen = now;
            state.progressed(now);
        }
        if now != told && told_at.elapsed() >= pause {
            told = now;
            told_at = Instant::now();
            let layers = now - first;
            // A link that is gone is found by whoever waits for it.
            let _ = reports.send(0, Message::Progress { layers });
        }
    }
}
