//! One tensor group of a mesh: the ranks that compute the same layers.

use std::time::{Duration, Instant};

use llamero_engine::{BackendError, Label, Mesh, Transfer, Wait};

/// A stage waits for another one so many times longer than ranks wait for each other within a layer: the other computes all of
/// its layers meanwhile. Whether they move is for the leader to see, which ends the era if they do not.
const STAGE_PATIENCE: u32 = 20;

/// How long waits spin and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// Each wait for peers ends after this.
    pub deadline: Duration,
    /// Busy waiting before sleeping; zero when there are fewer cores than threads that wait.
    pub spin: Duration,
}

impl Waits {
    /// 30 µs of spinning, which covers a hop between two hosts; none where cores are oversubscribed.
    #[must_use]
    pub fn new(deadline: Duration, oversubscribed: bool) -> Self {
        let spin = if oversubscribed {
            Duration::ZERO
        } else {
            Duration::from_micros(30)
        };
        Self { deadline, spin }
    }
}

/// What a frame carries. Ranks that diverged show by different kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Roots of subtrees for an all-to-all sum.
    Roots = 1,
    /// Parts of roots for a reduce-scatter.
    Scatter = 2,
    /// Parts to concatenate.
    Gather = 3,
    /// From one stage to the next.
    Stage = 4,
}

/// What one member gives to and takes from another.
pub(super) type Part<'a> = (Option<&'a [u8]>, Option<&'a mut [u8]>);

/// This rank and the others of its stage.
pub(super) struct Group {
    mesh: Box<dyn Mesh>,
    /// In rank order.
    members: Vec<u32>,
    /// The ranks of the stage before, and of the one behind; none where there is no such stage.
    before: Vec<u32>,
    behind: Vec<u32>,
    /// This rank's number among them.
    index: usize,
    step: u64,
    waits: Waits,
}

impl Group {
    pub(super) fn new(mesh: Box<dyn Mesh>, waits: Waits) -> Self {
        let (all, rank) = (mesh.members(), mesh.rank());
        let stage = all.topology().stage(rank);
        let members_of = |stage: u32| all.stage(stage).to_vec();
        let members = members_of(stage);
        Self {
            before: stage.checked_sub(1).map(members_of).unwrap_or_default(),
            behind: members_of(stage + 1),
            index: members.iter().position(|member| *member == rank).unwrap_or(0),
            mesh,
            members,
            step: 0,
            waits,
        }
    }

    pub(super) fn begin_step(&mut self, step: u64) {
        self.step = step;
    }

    /// Members.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// This rank's number in the group.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The ranks of the stage before.
    pub(super) fn before(&self) -> &[u32] {
        &self.before
    }

    /// The ranks of the stage behind.
    pub(super) fn behind(&self) -> &[u32] {
        &self.behind
    }

    /// One exchange with all other members; `parts` are in order of members, this rank's own one is left out.
    pub(super) fn exchange<'a>(
        &mut self,
        kind: Kind,
        parts: impl IntoIterator<Item = Part<'a>>,
    ) -> Result<(), BackendError> {
        let rank = self.mesh.rank();
        let mut frames: Vec<Transfer<'_>> = self
            .members
            .iter()
            .copied()
            .zip(parts)
            .filter(|(peer, (out, into))| *peer != rank && (out.is_some() || into.is_some()))
            .map(|(peer, (out, into))| Transfer { peer, out, into })
            .collect();
        self.transfer(kind, &mut frames)
    }

    /// One exchange with any rank of the mesh.
    pub(super) fn transfer(&mut self, kind: Kind, frames: &mut [Transfer<'_>]) -> Result<(), BackendError> {
        let label = Label {
            step: self.step,
            tag: kind as u16,
        };
        let patience = match kind {
            Kind::Stage => self.waits.deadline * STAGE_PATIENCE,
            Kind::Roots | Kind::Scatter | Kind::Gather => self.waits.deadline,
        };
        let wait = Wait {
            until: Instant::now() + patience,
            spin: self.waits.spin,
        };
        Ok(self.mesh.exchange(label, frames, wait)?)
    }
}
