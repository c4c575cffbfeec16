//! How a model is split over the ranks of a group, also of one that lost some.

use std::ops::Range;

use super::leaves::FfnLeaves;
use super::{RankShard, VOCAB_TILE};
use crate::config::LlamaConfig;
use crate::error::ShardError;
use crate::members::Members;
use crate::narrow::to_u32;
use crate::runs::Runs;
use crate::topology::{Topology, part};

/// The shards of all members of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlan {
    topology: Topology,
    shards: Vec<RankShard>,
}

impl ShardPlan {
    /// The split of a whole group: contiguous parts, the first ones larger by one piece where it does not come out even.
    ///
    /// # Errors
    /// More ranks in a stage than q heads, leaves or vocabulary tiles; more stages than layers; a width without leaves.
    pub fn new(config: &LlamaConfig, topology: Topology) -> Result<Self, ShardError> {
        let leaves = FfnLeaves::of(config.ffn_size)?;
        check(config, topology, leaves)?;
        let shards = (0..topology.ranks()).map(|rank| whole(config, topology, leaves, rank));
        Ok(Self {
            topology,
            shards: shards.collect(),
        })
    }

    /// The split of the members of a group: that of the whole group, and after each loss what [`Self::without`] makes of it.
    ///
    /// # Errors
    /// As [`Self::new`] and [`Self::without`].
    pub fn of(config: &LlamaConfig, members: &Members) -> Result<Self, ShardError> {
        let whole = Self::new(config, members.topology())?;
        members
            .lost()
            .iter()
            .try_fold(whole, |plan, lost| plan.without(*lost))
    }

    /// The split after `lost` is gone: the other ranks of its stage keep all they have, and each takes a part of what
    /// the lost one had, so that they end up with as equal shares as that allows. They have to load no more than that
    /// part. Ranks keep their numbers. The result depends on the order in which ranks are lost, so who tells a group
    /// which ranks it lost tells them in that order.
    ///
    /// # Errors
    /// `lost` is no member, or the last of its stage.
    pub fn without(&self, lost: u32) -> Result<Self, ShardError> {
        let Some(gone) = self.shard(lost) else {
            return Err(ShardError::NoSuchRank {
                rank: lost,
                members: to_u32(self.shards.len()),
                ranks: self.topology.ranks(),
            });
        };
        let stage = self.topology.stage(lost);
        let mut shards: Vec<_> = self
            .shards
            .iter()
            .filter(|shard| shard.rank != lost)
            .cloned()
            .collect();
        let mut heirs: Vec<&mut RankShard> =
            shards.iter_mut().filter(|shard| shard.stage() == stage).collect();
        if heirs.is_empty() {
            return Err(ShardError::StageLost { rank: lost, stage });
        }
        inherit(&mut heirs, &gone.q_heads, |shard| &mut shard.q_heads);
        inherit(&mut heirs, &gone.ffn_leaves, |shard| &mut shard.ffn_leaves);
        inherit(&mut heirs, &gone.vocab_tiles, |shard| &mut shard.vocab_tiles);
        for shard in heirs {
            shard.kv_heads = kv_heads(&shard.q_heads, shard.q_heads_per_kv);
        }
        Ok(Self {
            topology: self.topology,
            shards,
        })
    }

    /// The arrangement of the whole group.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// The members' shards in ascending order of rank.
    #[must_use]
    pub fn shards(&self) -> &[RankShard] {
        &self.shards
    }

    /// The members of a stage in ascending order of rank.
    pub fn stage(&self, stage: u32) -> impl Iterator<Item = &RankShard> {
        self.shards.iter().filter(move |shard| shard.stage() == stage)
    }

    /// The shard of `rank`, if it is a member.
    #[must_use]
    pub fn shard(&self, rank: u32) -> Option<&RankShard> {
        self.shards.iter().find(|shard| shard.rank == rank)
    }

    /// The shard of `rank`.
    ///
    /// # Errors
    /// It is no member.
    pub fn member(&self, rank: u32) -> Result<&RankShard, ShardError> {
        self.shard(rank).ok_or(ShardError::NoSuchRank {
            rank,
            members: to_u32(self.shards.len()),
            ranks: self.topology.ranks(),
        })
    }
}

fn check(config: &LlamaConfig, topology: Topology, leaves: FfnLeaves) -> Result<(), ShardError> {
    let Topology { tensor, pipeline } = topology;
    if tensor == 0 || pipeline == 0 {
        return Err(ShardError::NoRanks { tensor, pipeline });
    }
    let layers = config.layers;
    if pipeline > layers {
        return Err(ShardError::TooManyStages { pipeline, layers });
    }
    let limits = [
        (
            config.q_heads,
            "q heads",
            ", and more pipeline stages or replicas for more throughput",
        ),
        (leaves.count, "leaves of the feed-forward layer", ""),
        (
            config.vocab_size.div_ceil(VOCAB_TILE),
            "tiles of 128 vocabulary rows",
            "",
        ),
    ];
    match limits.into_iter().find(|(limit, ..)| tensor > *limit) {
        Some((limit, what, hint)) => Err(ShardError::TooManyRanks {
            tensor,
            limit,
            what,
            hint,
        }),
        None => Ok(()),
    }
}

fn whole(config: &LlamaConfig, topology: Topology, leaves: FfnLeaves, rank: u32) -> RankShard {
    let (tensor, index) = (topology.tensor, rank % topology.tensor);
    let share = |count: u32| Runs::from(part(count, tensor, index));
    let q_heads_per_kv = config.q_heads / config.kv_heads;
    let q_heads = share(config.q_heads);
    RankShard {
        topology,
        rank,
        layers: topology.layers_of(topology.stage(rank), config.layers),
        kv_heads: kv_heads(&q_heads, q_heads_per_kv),
        q_heads,
        ffn_leaves: share(leaves.count),
        leaves,
        vocab_tiles: share(config.vocab_size.div_ceil(VOCAB_TILE)),
        hidden_size: config.hidden_size,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        q_heads_per_kv,
    }
}

/// The kv heads that these q heads read.
fn kv_heads(q_heads: &Runs, q_heads_per_kv: u32) -> Runs {
    let of_run = |run: &Range<u32>| run.start / q_heads_per_kv..run.end.div_ceil(q_heads_per_kv);
    Runs::new(q_heads.as_slice().iter().map(of_run))
}

/// Give every heir a contiguous part of `pieces`: whoever has least takes most.
fn inherit(heirs: &mut [&mut RankShard], pieces: &Runs, field: impl Fn(&mut RankShard) -> &mut Runs) {
    let mut sizes: Vec<u32> = heirs.iter_mut().map(|heir| field(heir).len()).collect();
    let mut shares = vec![0; sizes.len()];
    for _ in 0..pieces.len() {
        let least = sizes.iter_mut().zip(&mut shares).min_by_key(|(size, _)| **size);
        if let Some((size, share)) = least {
            *size += 1;
            *share += 1;
        }
    }
    let mut start = 0;
    for (heir, share) in heirs.iter_mut().zip(shares) {
        let owned = field(heir);
        *owned = owned.union(&pieces.part(start..start + share));
        start += share;
    }
}
