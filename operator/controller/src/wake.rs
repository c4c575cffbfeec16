//! Wakes the reconcile loop. Any number of wake-ups before a pass make one pass.

use std::sync::Arc;

use tokio::sync::Notify;

/// Handle with which caches, rank reports and demand ask for a pass.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Asks for a pass; remembered when none waits yet.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    /// Returns at the next wake-up, at once if one came since the last return.
    pub async fn woken(&self) {
        self.0.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::Wake;

    #[test]
    fn many_wake_ups_make_one_pass() {
        let wake = Wake::default();
        wake.wake();
        wake.wake();
        assert!(wake.woken().now_or_never().is_some());
        assert!(wake.woken().now_or_never().is_none());
        wake.wake();
        assert!(wake.woken().now_or_never().is_some());
    }
}
