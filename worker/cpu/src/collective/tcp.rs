//! The collective over a mesh of TCP links.
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
use std::sync::Arc;
use std::time::Duration;

use super::data_link::DataLink;
use super::exchange::{Context, Job, exchange, say_goodbye};
use super::frame::Kind;
use super::socket::EraAbort;
use crate::collective::{Abort, Collective, CollectiveError, LeafLayout};
use crate::leaf_tree::{self, Subtree};
use crate::step::Era;

#[cfg(target_endian = "big")]
compile_error!("f32 travel in the host's order, which must be little end first");

/// From this many bytes of `N · (world − 1)` on, sums go by reduce-scatter + all-gather.
pub const SCATTER_BYTES: usize = 64 << 10;

/// Elements that are joined at a time, so that all roots of a piece stay in the first-level cache.
const PIECE: usize = 1024;

/// How long waits spin and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// Each wait ends after this.
    pub deadline: Duration,
    /// Busy waiting before sleeping; zero when there are fewer cores than threads that wait.
    pub spin: Duration,
}

impl Waits {
    /// 30 µs of spinning, which covers a hop between two hosts.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            spin: Duration::from_micros(30),
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct TcpCollective {
    core: Core,
    scratch: Scratch,
    scatter_bytes: usize,
}

#[derive(Debug)]
struct Core {
    rank: u32,
    world: u32,
    era: Era,
    step: u64,
    waits: Waits,
    /// In rank order, without this rank.
    links: Vec<DataLink>,
    abort: Arc<EraAbort>,
    failed: Option<CollectiveError>,
}

#[derive(Debug, Default)]
struct Scratch {
    /// Per rank.
    incoming: Vec<Vec<f32>>,
    /// Per rank.
    outgoing: Vec<Vec<f32>>,
    spare: Vec<Vec<f32>>,
}

impl TcpCollective {
    /// A collective over one link to each other rank, in any order.
    ///
    /// # Errors
    /// [`CollectiveError::Protocol`] when the links are not exactly one to each other rank.
    pub fn new(
        rank: u32,
        world: u32,
        era: Era,
        mut links: Vec<DataLink>,
        abort: Arc<EraAbort>,
        waits: Waits,
    ) -> Result<Self, CollectiveError> {
        links.sort_by_key(DataLink::peer);
        let peers = links.iter().map(DataLink::peer);
        if rank >= world || !peers.clone().eq((0..world).filter(|peer| *peer != rank)) {
            let reason = format!(
                "rank {rank} of {world} has links to {:?}",
                peers.collect::<Vec<_>>()
            );
            return Err(CollectiveError::Protocol { rank, reason });
        }
        let buffers = vec![Vec::new(); world as usize];
        Ok(Self {
            core: Core {
                rank,
                world,
                era,
                step: 0,
                waits,
                links,
                abort,
                failed: None,
            },
            scratch: Scratch {
                incoming: buffers.clone(),
                outgoing: buffers,
                spare: Vec::new(),
            },
            scatter_bytes: SCATTER_BYTES,
        })
    }

    /// Change how long each wait may last.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.core.waits.deadline = deadline;
    }

    /// Change where reduce-scatter begins to pay. All ranks must agree.
    pub fn set_scatter_bytes(&mut self, bytes: usize) {
        self.scatter_bytes = bytes;
    }
}

impl Core {
    /// One exchange with all peers; `parts` are in rank order without this rank. After an error every later call fails
    /// the same way.
    fn exchange<'a>(
        &'a mut self,
        kind: Kind,
        parts: impl IntoIterator<Item = (Option<&'a [f32]>, Option<&'a mut [f32]>)>,
    ) -> Result<(), CollectiveError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Self { era, step, abort, .. } = self;
        let context = Context {
            kind,
            era: *era,
            step: *step,
            wait: self.waits.deadline,
            spin: self.waits.spin,
            abort,
        };
        let jobs = self
            .links
            .iter_mut()
            .zip(parts)
            .filter(|(_, (out, into))| out.is_some() || into.is_some());
        let jobs = jobs.map(|(link, (out, into))| Job {
            link,
            out: out.map(bytemuck::cast_slice),
            into: into.map(bytemuck::cast_slice_mut),
        });
        let done = exchange(context, jobs.collect());
        if let Err(error) = &done {
            say_goodbye(&self.links, self.era, self.step, error);
            self.failed = Some(error.clone());
        }
        done
    }

    /// An error of this rank's own caller.
    fn misuse(&self, reason: String) -> CollectiveError {
        CollectiveError::Protocol {
            rank: self.rank,
            reason,
        }
    }

    fn others<T>(&self, all: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
        let rank = self.rank as usize;
        all.into_iter()
            .enumerate()
            .filter(move |(index, _)| *index != rank)
            .map(|(_, item)| item)
    }

    /// Complete `out`, of which this rank's piece is there, by everybody else's.
    fn gather(&mut self, counts: &[usize], out: &mut [f32]) -> Result<(), CollectiveError> {
        let mut pieces = pieces(counts, out);
        let mine: &[f32] = pieces.remove(self.rank as usize);
        self.exchange(
            Kind::Gather,
            pieces.into_iter().map(|piece| (Some(mine), Some(piece))),
        )
    }
}

impl Collective for TcpCollective {
    type Buffer = [f32];

    fn world(&self) -> u32 {
        self.core.world
    }

    fn rank(&self) -> u32 {
        self.core.rank
    }

    fn era(&self) -> Era {
        self.core.era
    }

    fn begin_step(&mut self, step: u64) {
        self.core.step = step;
        self.core.links.iter_mut().for_each(DataLink::begin_step);
    }

    fn reduce_tree(
        &mut self,
        layout: &LeafLayout,
        rows: usize,
        width: usize,
        roots: &[f32],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let Self {
            core,
            scratch,
            scatter_bytes,
        } = self;
        let (rank, world, n) = (core.rank as usize, core.world as usize, rows * width);
        let leaves = layout.owners.last().map_or(0, |owned| owned.end);
        let trees: Vec<Vec<Subtree>> = layout
            .owners
            .iter()
            .map(|owned| leaf_tree::maximal_subtrees(leaves, owned))
            .collect();
        if trees.len() != world || leaves == 0 || out.len() != n || roots.len() != trees[rank].len() * n {
            let reason = format!(
                "a sum of [{rows}, {width}] over {leaves} leaves of {} ranks got {} values of roots and room for {}",
                trees.len(),
                roots.len(),
                out.len()
            );
            return Err(core.misuse(reason));
        }
        let by_parts = world > 2 && n * size_of::<f32>() * (world - 1) >= *scatter_bytes;
        // What this rank joins, and how many values of that each root has.
        let part = if by_parts { part(rank, world, n) } else { 0..n };
        for (peer, incoming) in scratch
            .incoming
            .iter_mut()
            .enumerate()
            .filter(|(peer, _)| *peer != rank)
        {
            incoming.resize(trees[peer].len() * part.len(), 0.0);
        }
        if by_parts {
            for (peer, outgoing) in scratch.outgoing.iter_mut().enumerate() {
                outgoing.clear();
                let wanted = self::part(peer, world, n);
                roots
                    .chunks_exact(n.max(1))
                    .for_each(|root| outgoing.extend_from_slice(&root[wanted.clone()]));
            }
            let out = scratch.outgoing.iter().map(|all| Some(all.as_slice()));
            let into = scratch.incoming.iter_mut().map(|all| Some(all.as_mut_slice()));
            let parts: Vec<_> = core.others(out.zip(into)).collect();
            core.exchange(Kind::Scatter, parts)?;
        } else {
            let into = scratch
                .incoming
                .iter_mut()
                .map(|all| (Some(roots), Some(all.as_mut_slice())));
            let parts: Vec<_> = core.others(into).collect();
            core.exchange(Kind::Roots, parts)?;
        }
        let mut all: Vec<(Subtree, &[f32])> = Vec::new();
        for (peer, trees) in trees.into_iter().enumerate() {
            for (index, tree) in trees.into_iter().enumerate() {
                let values = if peer == rank {
                    &roots[index * n..][part.clone()]
                } else {
                    &scratch.incoming[peer][index * part.len()..][..part.len()]
                };
                all.push((tree, values));
            }
        }
        if !join(leaves, &all, &mut out[part], &mut scratch.spare) {
            return Err(core.misuse(format!(
                "the leaves {:?} are not all owned, in rank order",
                layout.owners
            )));
        }
        if by_parts {
            let counts: Vec<usize> = (0..world).map(|peer| self::part(peer, world, n).len()).collect();
            core.gather(&counts, out)?;
        }
        Ok(())
    }

    fn all_gather(&mut self, counts: &[usize], mine: &[f32], out: &mut [f32]) -> Result<(), CollectiveError> {
        let core = &mut self.core;
        let rank = core.rank as usize;
        let fits = counts.len() == core.world as usize && counts.iter().sum::<usize>() == out.len();
        if !fits || counts[rank] != mine.len() {
            let reason = format!(
                "a gather of {counts:?} got {} values and room for {}",
                mine.len(),
                out.len()
            );
            return Err(core.misuse(reason));
        }
        let start: usize = counts[..rank].iter().sum();
        out[start..start + mine.len()].copy_from_slice(mine);
        core.gather(counts, out)
    }

    fn send(&mut self, to: u32, data: &[f32]) -> Result<(), CollectiveError> {
        let peers: Vec<u32> = self.core.links.iter().map(DataLink::peer).collect();
        if !peers.contains(&to) {
            return Err(self.core.misuse(format!("rank {to} is not a peer")));
        }
        self.core.exchange(
            Kind::Direct,
            peers.iter().map(|peer| ((*peer == to).then_some(data), None)),
        )
    }

    fn recv(&mut self, from: u32, data: &mut [f32]) -> Result<(), CollectiveError> {
        let peers: Vec<u32> = self.core.links.iter().map(DataLink::peer).collect();
        if !peers.contains(&from) {
            return Err(self.core.misuse(format!("rank {from} is not a peer")));
        }
        let mut data = Some(data);
        self.core.exchange(
            Kind::Direct,
            peers.iter().map(|peer| (None, data.take_if(|_| *peer == from))),
        )
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        self.core.abort.clone()
    }
}

/// The elements that `rank` joins of `n`.
fn part(rank: usize, world: usize, n: usize) -> Range<usize> {
    rank * n / world..(rank + 1) * n / world
}

fn pieces<'a>(counts: &[usize], mut out: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let mut pieces = Vec::with_capacity(counts.len());
    for count in counts {
        let (piece, rest) = out.split_at_mut(*count);
        pieces.push(piece);
        out = rest;
    }
    pieces
}

enum Partial<'a> {
    Root(&'a [f32]),
    Sum(Vec<f32>),
}

/// Join each element of `roots` in the tree's order. False when they do not make up the tree.
fn join(leaves: u32, roots: &[(Subtree, &[f32])], out: &mut [f32], spare: &mut Vec<Vec<f32>>) -> bool {
    for (index, out) in out.chunks_mut(PIECE).enumerate() {
        let from = index * PIECE;
        let mut pieces = roots
            .iter()
            .map(|(tree, values)| (tree.clone(), Partial::Root(&values[from..from + out.len()])));
        match leaf_tree::join(&(0..leaves), &mut pieces, &mut |left, right| {
            add(left, right, spare)
        }) {
            Some(Partial::Root(values)) => out.copy_from_slice(values),
            Some(Partial::Sum(values)) => {
                out.copy_from_slice(&values);
                spare.push(values);
            }
            None => return false,
        }
    }
    true
}

fn add<'a>(left: Partial<'a>, right: Partial<'a>, spare: &mut Vec<Vec<f32>>) -> Partial<'a> {
    let mut sum = match left {
        Partial::Sum(sum) => sum,
        Partial::Root(values) => {
            let mut sum = spare.pop().unwrap_or_default();
            sum.clear();
            sum.extend_from_slice(values);
            sum
        }
    };
    let values = match &right {
        Partial::Root(values) => values,
        Partial::Sum(values) => values.as_slice(),
    };
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    if let Partial::Sum(values) = right {
        spare.push(values);
    }
    Partial::Sum(sum)
}
