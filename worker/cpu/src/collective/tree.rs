//! Sums and gathers among the ranks of a tensor group.
//!
//! Direct, never a ring: a decode step's messages are a few KB, where the number of hops decides. Two ways to sum:
//!
//! - *all-to-all*: every rank sends its subtree roots to every other and joins all of them. One hop; each rank sends
//!   `roots · N · (world − 1)` values.
//! - *reduce-scatter + all-gather*: the `N` elements are cut into `world` parts; rank `r` joins part `r` of all roots,
//!   then the parts are gathered. Two hops; about `(roots + 1) · N` values.
//!
//! Cost model: a hop costs about 20 µs (loopback with poll; more across hosts), a link moves about 1 GB/s, so the second
//! hop pays from some tens of KB saved: [`SCATTER_BYTES`]. The choice depends on sizes that all ranks know, and both
//! ways join each element in the order of the leaf tree, so the bits are the same.

use std::ops::Range;

use llamero_engine::leaf_tree::{LeafLayout, Subtree, maximal_subtrees};
use llamero_engine::{BackendError, Mesh, Transfer};

use super::group::{Group, Kind, Part, Waits};
use super::join::join;

#[cfg(target_endian = "big")]
compile_error!("f32 travel in the host's order, which must be little end first");

/// From this many bytes of `N · (world − 1)` on, sums go by reduce-scatter + all-gather.
pub const SCATTER_BYTES: usize = 64 << 10;

/// One sum's layout, prepared once: who owns which subtrees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduction {
    leaves: u32,
    /// Of each rank, ascending.
    trees: Vec<Vec<Subtree>>,
    /// (rank, number among its roots) of all subtrees in ascending order of leaves.
    order: Vec<(usize, usize)>,
}

impl Reduction {
    /// Of a layout.
    #[must_use]
    pub fn new(layout: &LeafLayout) -> Self {
        let trees: Vec<Vec<Subtree>> = layout
            .owners
            .iter()
            .map(|owned| maximal_subtrees(layout.leaves, owned))
            .collect();
        let of_rank = |(rank, trees): (usize, &Vec<Subtree>)| -> Vec<(u32, (usize, usize))> {
            let roots = trees.iter().enumerate();
            roots.map(|(root, tree)| (tree.start, (rank, root))).collect()
        };
        let mut order: Vec<_> = trees.iter().enumerate().flat_map(of_rank).collect();
        order.sort_unstable();
        Self {
            leaves: layout.leaves,
            order: order.into_iter().map(|(_, place)| place).collect(),
            trees,
        }
    }
}

/// The ranks of one stage in one era. Calls are made in the same order on all of them.
pub struct Collective {
    group: Group,
    scratch: Scratch,
    scatter_bytes: usize,
}

#[derive(Debug, Default)]
struct Scratch {
    /// Per rank.
    incoming: Vec<Vec<f32>>,
    /// Per rank.
    outgoing: Vec<Vec<f32>>,
    spare: Vec<Vec<f32>>,
}

impl Collective {
    /// Over the links of `mesh`.
    #[must_use]
    pub fn new(mesh: Box<dyn Mesh>, waits: Waits) -> Self {
        let group = Group::new(mesh, waits);
        let buffers = vec![Vec::new(); group.len()];
        Self {
            group,
            scratch: Scratch {
                incoming: buffers.clone(),
                outgoing: buffers,
                spare: Vec::new(),
            },
            scatter_bytes: SCATTER_BYTES,
        }
    }

    /// Bytes of buffers that sums of `n` values take on rank `index` of the group.
    #[must_use]
    pub fn buffer_bytes(reduction: &Reduction, index: usize, n: usize) -> usize {
        let world = reduction.trees.len();
        if world < 2 {
            return 0;
        }
        let roots: usize = reduction.trees.iter().map(Vec::len).sum();
        let mine = reduction.trees.get(index).map_or(0, Vec::len);
        let others = roots.saturating_sub(mine);
        // All-to-all holds the roots of the others; by parts, a part of everybody's in and of its own out.
        let whole = (SCATTER_BYTES / size_of::<f32>() / (world - 1)).min(n);
        let whole = whole.saturating_mul(others);
        let parts = n.div_ceil(world).saturating_mul(others);
        let parts = parts.saturating_add(n.saturating_mul(mine));
        let values = if world > 2 {
            whole.max(parts)
        } else {
            n.saturating_mul(others)
        };
        values.saturating_mul(size_of::<f32>())
    }

    /// Ranks of the group.
    #[must_use]
    pub fn world(&self) -> usize {
        self.group.len()
    }

    /// This rank's number in the group.
    #[must_use]
    pub fn index(&self) -> usize {
        self.group.index()
    }

    /// Whether there is a stage before this rank's.
    #[must_use]
    pub fn has_stage_before(&self) -> bool {
        !self.group.before().is_empty()
    }

    /// Whether there is a stage behind this rank's.
    #[must_use]
    pub fn has_stage_behind(&self) -> bool {
        !self.group.behind().is_empty()
    }

    /// Change where reduce-scatter begins to pay. All ranks must agree.
    pub fn set_scatter_bytes(&mut self, bytes: usize) {
        self.scatter_bytes = bytes;
    }

    /// Start of step `step`; frames of other steps are refused from here on.
    pub fn begin_step(&mut self, step: u64) {
        self.group.begin_step(step);
    }

    /// Sum over leaves in the model's fixed tree (see [`llamero_engine::leaf_tree`]).
    ///
    /// `roots` holds, for each maximal complete subtree this rank owns and in ascending order, `out.len()` values; `out`
    /// receives the root of the whole tree, the same bits on every rank.
    ///
    /// # Errors
    /// [`BackendError::Lost`], or [`BackendError::Bug`] when sizes do not fit; `out` is then undefined.
    pub fn reduce_tree(
        &mut self,
        reduction: &Reduction,
        roots: &[f32],
        out: &mut [f32],
    ) -> Result<(), BackendError> {
        let (rank, world, n) = (self.index(), self.world(), out.len());
        let trees = &reduction.trees;
        let mine = trees.get(rank).map_or(0, Vec::len);
        if trees.len() != world || reduction.leaves == 0 || roots.len() != mine * n {
            return Err(BackendError::Bug(format!(
                "a sum of {n} values over {} leaves of {} ranks got {} values of roots",
                reduction.leaves,
                trees.len(),
                roots.len()
            )));
        }
        let by_parts = world > 2 && n * size_of::<f32>() * (world - 1) >= self.scatter_bytes;
        // What this rank joins, and how many values of that each root has.
        let part = if by_parts { part(rank, world, n) } else { 0..n };
        for (peer, (incoming, trees)) in self.scratch.incoming.iter_mut().zip(trees).enumerate() {
            if peer != rank {
                incoming.resize(trees.len() * part.len(), 0.0);
            }
        }
        if by_parts {
            self.scatter(roots, n)?;
        } else {
            let into = self.scratch.incoming.iter_mut();
            let out = Some(bytemuck::cast_slice(roots));
            let parts = into.map(|all| (out, Some(bytemuck::cast_slice_mut(all.as_mut_slice()))));
            self.group.exchange(Kind::Roots, parts)?;
        }
        let Scratch { incoming, spare, .. } = &mut self.scratch;
        let root = |(peer, index): &(usize, usize)| {
            let values = if *peer == rank {
                roots.get(index * n..)?.get(part.clone())?
            } else {
                incoming
                    .get(*peer)?
                    .get(index * part.len()..)?
                    .get(..part.len())?
            };
            Some((trees.get(*peer)?.get(*index)?.clone(), values))
        };
        let all: Option<Vec<(Subtree, &[f32])>> = reduction.order.iter().map(root).collect();
        let joined = all
            .zip(out.get_mut(part.clone()))
            .is_some_and(|(all, out)| join(reduction.leaves, &all, out, spare));
        if !joined {
            return Err(BackendError::Bug(format!(
                "the subtrees {trees:?} do not make up a tree"
            )));
        }
        if by_parts {
            self.gather_parts(out)?;
        }
        Ok(())
    }

    /// Give everybody its part of this rank's roots, and take this rank's part of theirs.
    fn scatter(&mut self, roots: &[f32], n: usize) -> Result<(), BackendError> {
        let world = self.world();
        let Scratch {
            incoming, outgoing, ..
        } = &mut self.scratch;
        for (peer, outgoing) in outgoing.iter_mut().enumerate() {
            outgoing.clear();
            let wanted = part(peer, world, n);
            for root in roots.chunks_exact(n.max(1)) {
                outgoing.extend_from_slice(root.get(wanted.clone()).ok_or_else(outside)?);
            }
        }
        let parts = outgoing.iter().zip(incoming).map(|(out, into)| -> Part<'_> {
            (
                Some(bytemuck::cast_slice(out.as_slice())),
                Some(bytemuck::cast_slice_mut(into.as_mut_slice())),
            )
        });
        self.group.exchange(Kind::Scatter, parts)
    }

    /// Concatenate the ranks' values in order; `counts[r]` is the number of values of rank `r`.
    ///
    /// # Errors
    /// [`BackendError::Lost`], or [`BackendError::Bug`] when sizes do not fit; `out` is then undefined.
    pub fn all_gather<T: bytemuck::Pod>(
        &mut self,
        counts: &[usize],
        mine: &[T],
        out: &mut [T],
    ) -> Result<(), BackendError> {
        let rank = self.index();
        let room = out.len();
        let fits = counts.len() == self.world() && counts.iter().sum::<usize>() == room;
        let fits = fits && counts.get(rank) == Some(&mine.len());
        let start: usize = counts.iter().take(rank).sum();
        let Some(place) = out.get_mut(start..start + mine.len()).filter(|_| fits) else {
            return Err(BackendError::Bug(format!(
                "a gather of {counts:?} got {} values and room for {room}",
                mine.len()
            )));
        };
        place.copy_from_slice(mine);
        self.gather(counts, out)
    }

    /// Complete `out`, of which every rank has its [`part`].
    fn gather_parts(&mut self, out: &mut [f32]) -> Result<(), BackendError> {
        let (world, n) = (self.world(), out.len());
        let counts: Vec<usize> = (0..world).map(|rank| part(rank, world, n).len()).collect();
        self.gather(&counts, out)
    }

    /// Complete `out`, of which this rank's piece is there, by everybody else's.
    fn gather<T: bytemuck::Pod>(&mut self, counts: &[usize], mut out: &mut [T]) -> Result<(), BackendError> {
        let mut pieces = Vec::with_capacity(counts.len());
        for count in counts {
            let (piece, rest) = out.split_at_mut(*count);
            pieces.push(piece);
            out = rest;
        }
        let rank = self.index();
        let mut mine: &[T] = &[];
        let mut others = Vec::with_capacity(counts.len());
        for (peer, piece) in pieces.into_iter().enumerate() {
            if peer == rank {
                mine = piece;
                others.push(None);
            } else {
                others.push(Some(piece));
            }
        }
        let mine = Some(bytemuck::cast_slice(mine));
        let parts = others
            .into_iter()
            .map(|piece| (mine, piece.map(bytemuck::cast_slice_mut)));
        self.group.exchange(Kind::Gather, parts)
    }

    /// Give `values`, which all ranks of this stage have alike, to the next stage, which calls [`Self::take_over`].
    ///
    /// # Errors
    /// [`BackendError::Lost`], or [`BackendError::Bug`] when sizes do not fit.
    pub fn pass_on(&mut self, values: &[f32]) -> Result<(), BackendError> {
        let (index, stage) = (self.index(), self.world());
        let peers = self.group.behind().to_vec();
        let by_parts = self.is_cut(values.len(), peers.len());
        let mine = peers.iter().enumerate();
        let mine = mine.filter(|(receiver, _)| receiver % stage == index);
        let frames: Option<Vec<Transfer<'_>>> = mine
            .map(|(receiver, peer)| {
                let wanted = portion(by_parts, receiver, peers.len(), values.len());
                Some(Transfer {
                    peer: *peer,
                    out: Some(bytemuck::cast_slice(values.get(wanted)?)),
                    into: None,
                })
            })
            .collect();
        self.group.transfer(Kind::Stage, &mut frames.ok_or_else(outside)?)
    }

    /// Take from the stage before what its ranks give by [`Self::pass_on`]. Each rank takes all of it from one of them, or, where
    /// it is long, a part, so that it goes over the network once; the parts are gathered then.
    ///
    /// # Errors
    /// [`BackendError::Lost`], or [`BackendError::Bug`] when sizes do not fit; `values` is then undefined.
    pub fn take_over(&mut self, values: &mut [f32]) -> Result<(), BackendError> {
        let (index, world, n) = (self.index(), self.world(), values.len());
        let senders = self.group.before();
        let Some(peer) = senders.get(index % senders.len().max(1)).copied() else {
            return Err(BackendError::Bug("there is no stage before the first".into()));
        };
        let by_parts = self.is_cut(n, world);
        let wanted = portion(by_parts, index, world, n);
        let into = values.get_mut(wanted).ok_or_else(outside)?;
        let mut frame = [Transfer {
            peer,
            out: None,
            into: Some(bytemuck::cast_slice_mut(into)),
        }];
        self.group.transfer(Kind::Stage, &mut frame)?;
        if by_parts {
            self.gather_parts(values)?;
        }
        Ok(())
    }

    /// Whether `n` values go to a stage of so many ranks in parts.
    fn is_cut(&self, n: usize, ranks: usize) -> bool {
        ranks > 1 && n * size_of::<f32>() * (ranks - 1) >= self.scatter_bytes
    }
}

/// Nothing in place of a part would look alike on both sides, which then went on with what they had before.
fn outside() -> BackendError {
    BackendError::Bug("a rank's part lies behind the end of what the ranks share".into())
}

/// What the `receiver`-th of `world` ranks takes of `n` values from the stage before.
fn portion(by_parts: bool, receiver: usize, world: usize, n: usize) -> Range<usize> {
    if by_parts { part(receiver, world, n) } else { 0..n }
}

/// The elements that `rank` joins of `n`.
fn part(rank: usize, world: usize, n: usize) -> Range<usize> {
    rank * n / world..(rank + 1) * n / world
}
