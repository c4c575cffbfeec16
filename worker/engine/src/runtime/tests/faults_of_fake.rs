//! What tests do to a fake rank from outside, and what they see of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::fake_adapters::FakeAdapters;
use crate::backend::{BackendError, StepProgress};
use crate::mesh::{Abort, MeshError};

#[derive(Default)]
pub(in crate::runtime) struct Faults {
    state: Mutex<State>,
    changed: Condvar,
    /// What the rank has read.
    pub(super) adapters: Arc<FakeAdapters>,
}

#[derive(Default)]
struct State {
    abort: Option<Arc<dyn Abort>>,
    /// Layers that may be computed before a halt; none: all.
    layers: Option<u64>,
    unusable: Option<String>,
    /// Forming waits.
    holds_forming: bool,
    /// Answers name rows that were not asked for.
    garbles: bool,
    /// Steps fail since a peer says something invalid.
    diverges: bool,
    /// This token of a prompt brings the rank down.
    deadly: Option<u32>,
    /// Layers of a step; none: the usual number.
    depth: Option<u32>,
    loads: u32,
    full_rows: u32,
    /// Positions that were computed.
    computed: usize,
    masks: BTreeSet<Mask>,
}

/// Length of a history, the bits of what the model makes of it, and the mask of the next position.
pub(in crate::runtime) type Mask = (u32, u32, Vec<u8>);

impl Faults {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Cut all links of the present era, as a dead process does.
    pub(in crate::runtime) fn cut(&self) {
        self.lock().abort.as_ref().unwrap().abort();
    }

    /// Compute no layer from here on, or go on.
    pub(in crate::runtime) fn stall(&self, stalled: bool) {
        self.lock().layers = stalled.then_some(0);
        self.changed.notify_all();
    }

    /// Compute one layer more, then stall.
    pub(in crate::runtime) fn one_layer(&self) {
        self.lock().layers = Some(1);
        self.changed.notify_all();
    }

    /// Forming fails for good from here on.
    pub(in crate::runtime) fn unusable(&self, why: &str) {
        self.lock().unusable = Some(why.into());
    }

    /// Let forming wait, or go on.
    pub(in crate::runtime) fn hold_forming(&self, holds: bool) {
        self.lock().holds_forming = holds;
        self.changed.notify_all();
    }

    /// Answer rows that were not asked for from here on.
    pub(in crate::runtime) fn garble(&self) {
        self.lock().garbles = true;
    }

    pub(super) fn is_garbling(&self) -> bool {
        self.lock().garbles
    }

    /// Find a peer's frames invalid in every step from here on.
    pub(in crate::runtime) fn diverge(&self) {
        self.lock().diverges = true;
    }

    /// Go down like a dead process in every step that has `token` in a prompt.
    pub(in crate::runtime) fn die_of(&self, token: u32) {
        self.lock().deadly = Some(token);
    }

    /// Compute so many layers in each step.
    pub(in crate::runtime) fn deepen(&self, depth: u32) {
        self.lock().depth = Some(depth);
    }

    pub(super) fn depth(&self, usual: u32) -> u32 {
        self.lock().depth.unwrap_or(usual)
    }

    /// What comes of a step with these known tokens before it is computed.
    pub(super) fn before_step(&self, mut tokens: impl Iterator<Item = u32>) -> Result<(), BackendError> {
        let state = self.lock();
        if state
            .deadly
            .is_some_and(|deadly| tokens.any(|token| token == deadly))
        {
            drop(state);
            self.cut();
            return Err(MeshError::Aborted.into());
        }
        if state.diverges {
            let (rank, reason) = (0, "the check sum differs".to_owned());
            return Err(MeshError::Protocol { rank, reason }.into());
        }
        Ok(())
    }

    pub(in crate::runtime) fn loads(&self) -> u32 {
        self.lock().loads
    }

    pub(in crate::runtime) fn full_rows(&self) -> u32 {
        self.lock().full_rows
    }

    /// Positions that the rank has computed so far.
    pub(in crate::runtime) fn computed(&self) -> usize {
        self.lock().computed
    }

    pub(super) fn compute(&self, positions: usize) {
        self.lock().computed += positions;
    }

    /// All masks that the rank was given.
    pub(in crate::runtime) fn masks(&self) -> BTreeSet<Mask> {
        self.lock().masks.clone()
    }

    pub(super) fn masked(&self, length: u32, sum: f32, mask: &[u8]) {
        self.lock().masks.insert((length, sum.to_bits(), mask.to_vec()));
    }

    pub(super) fn loaded(&self) {
        self.lock().loads += 1;
    }

    pub(super) fn full_row(&self) {
        self.lock().full_rows += 1;
    }

    pub(super) fn forming(&self, abort: Arc<dyn Abort>) -> Result<(), BackendError> {
        let mut state = self.lock();
        state.abort = Some(abort);
        state = self
            .changed
            .wait_while(state, |state| state.holds_forming)
            .unwrap();
        match state.unusable.clone() {
            Some(why) => Err(BackendError::Unusable(why)),
            None => Ok(()),
        }
    }

    /// Wait while the rank is stalled, as long as the step is wanted.
    pub(super) fn before_layer(&self, progress: &StepProgress) -> Result<(), BackendError> {
        let mut state = self.lock();
        loop {
            if progress.is_stopped() {
                return Err(MeshError::Aborted.into());
            }
            match &mut state.layers {
                None => return Ok(()),
                Some(0) => {}
                Some(left) => {
                    *left -= 1;
                    return Ok(());
                }
            }
            let short = Duration::from_millis(5);
            state = self.changed.wait_timeout(state, short).unwrap().0;
        }
    }
}
