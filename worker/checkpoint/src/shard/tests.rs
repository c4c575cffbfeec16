use proptest::prelude::*;

use super::*;
use crate::config::LlamaConfig;

fn config(q_heads: u32, kv_heads: u32, head_dim: u32, ffn_size: u32, vocab_size: u32) -> LlamaConfig {
    LlamaConfig {
        hidden_size: q_heads * head_dim,
        layers: 1,
        q_heads,
        kv_heads,
        head_dim,
        ffn_size,
        vocab_size,
        rms_norm_eps: 1e-5,
        rope_theta: 1e5,
        rope_scaling: None,
        tie_word_embeddings: false,
        max_position_embeddings: 8192,
        quantization: None,
        eos_token_ids: vec![],
        bos_token_id: None,
    }
}

fn smollm2() -> LlamaConfig {
    config(9, 3, 64, 1536, 49152)
}

#[test]
fn leaves_of_known_models() {
    for (ffn, count, width) in [
        (14336, 32, 448),
        (28672, 32, 896),
        (53248, 32, 1664),
        (1536, 24, 64),
        (128, 2, 64),
    ] {
        assert_eq!(FfnLeaves::of(ffn), Ok(FfnLeaves { count, width }));
    }
    assert_eq!(FfnLeaves::of(100), Err(ShardError::OddFfn { ffn_size: 100 }));
}

fn layer(kind: TensorKind) -> TensorId {
    TensorId { layer: Some(0), kind }
}

fn global(kind: TensorKind) -> TensorId {
    TensorId { layer: None, kind }
}

fn split(config: &LlamaConfig, tensor: u32) -> ShardPlan {
    ShardPlan::new(config, Topology::tensor(tensor)).unwrap()
}

fn slice(rows: Range<u32>, cols: Range<u32>) -> Slice {
    Slice {
        rows: rows.into(),
        cols: cols.into(),
    }
}

#[test]
fn smollm2_over_two() {
    let plan = split(&smollm2(), 2);
    let shards = plan.shards();
    assert_eq!(
        (shards[0].q_heads.clone(), shards[1].q_heads.clone()),
        (Runs::from(0..5), Runs::from(5..9))
    );
    assert_eq!(
        (shards[0].kv_heads.clone(), shards[1].kv_heads.clone()),
        (Runs::from(0..2), Runs::from(1..3))
    );
    assert_eq!(shards[1].slice(layer(TensorKind::O)), slice(0..576, 320..576));
    assert_eq!(shards[1].slice(layer(TensorKind::Gate)), slice(768..1536, 0..576));
    assert_eq!(
        shards[1].slice(global(TensorKind::Head)),
        slice(24576..49152, 0..576)
    );
}

#[test]
fn stages_hold_their_layers_and_ends() {
    let config = LlamaConfig {
        layers: 3,
        ..smollm2()
    };
    let topology = Topology {
        tensor: 2,
        pipeline: 2,
    };
    let plan = ShardPlan::new(&config, topology).unwrap();
    assert_eq!(plan.shards().len(), 4);
    assert_eq!(
        (
            plan.member(1).unwrap().layers.clone(),
            plan.member(2).unwrap().layers.clone()
        ),
        (0..2, 2..3)
    );
    for (rank, embed, head, first, last) in [(0, true, false, true, false), (3, false, true, false, true)] {
        let shard = plan.member(rank).unwrap();
        let of = |layer| TensorId {
            layer: Some(layer),
            kind: TensorKind::Down,
        };
        assert_eq!(shard.has(global(TensorKind::Embed)), embed);
        assert_eq!(shard.has(global(TensorKind::Head)), head);
        assert_eq!(shard.has(global(TensorKind::FinalNorm)), head);
        assert_eq!(shard.slice(of(0)) != Slice::default(), first);
        assert_eq!(shard.slice(of(2)) != Slice::default(), last);
    }
    // The other stage does not notice a loss.
    let fewer = plan.without(0).unwrap();
    assert_eq!(
        fewer.stage(1).collect::<Vec<_>>(),
        plan.stage(1).collect::<Vec<_>>()
    );
    assert_eq!(fewer.member(1).unwrap().q_heads, Runs::from(0..9));
    assert_eq!(
        fewer.without(1).unwrap_err().to_string(),
        "rank 1 is the last of stage 0: without it the layers of that stage are nowhere"
    );
    assert!(
        fewer
            .without(0)
            .unwrap_err()
            .to_string()
            .contains("rank 0 is not a member")
    );
}

/// Each of seven survivors of a 70B over eight loads a seventh of what was lost, and no byte that it has.
#[test]
fn seven_of_eight_share_what_the_lost_one_had() {
    let config = config(64, 8, 128, 28672, 128_256);
    let plan = split(&config, 8);
    let seven = plan.without(3).unwrap();
    let shares: Vec<(u32, u32, u32)> = seven
        .shards()
        .iter()
        .map(|shard| {
            (
                shard.q_heads.len(),
                shard.ffn_leaves.len(),
                shard.vocab_tiles.len(),
            )
        })
        .collect();
    assert_eq!(
        shares.iter().map(|share| share.0).collect::<Vec<_>>(),
        [10, 9, 9, 9, 9, 9, 9]
    );
    assert!(
        shares.iter().all(|share| (4..=5).contains(&share.1)),
        "{shares:?}"
    );
    assert!(
        shares.iter().all(|share| (143..=144).contains(&share.2)),
        "{shares:?}"
    );
    let second = seven.member(1).unwrap();
    assert_eq!(second.q_heads.as_slice(), [8..16, 26..27]);
    assert_eq!(second.kv_heads.as_slice(), [1..2, 3..4]);
    assert_eq!(
        second.slice(layer(TensorKind::O)).cols.as_slice(),
        [1024..2048, 26 * 128..27 * 128]
    );
}

#[test]
fn what_cannot_be_split_is_refused() {
    let refusal = |config: &LlamaConfig, tensor, pipeline| {
        ShardPlan::new(config, Topology { tensor, pipeline })
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refusal(&smollm2(), 10, 1),
        "tensor 10 is more than 9 q heads: use tensor 9 or less, and more pipeline stages or replicas for more throughput"
    );
    assert!(refusal(&smollm2(), u32::MAX, 1).contains("9 q heads"));
    assert!(refusal(&smollm2(), 0, 1).contains("at least 1"));
    assert!(refusal(&smollm2(), 1, 0).contains("at least 1"));
    assert!(refusal(&smollm2(), 1, u32::MAX).contains("the 1 layers of the model: use pipeline 1"));
    assert!(
        split(&smollm2(), 2)
            .member(2)
            .unwrap_err()
            .to_string()
            .contains("rank 2 is not a member")
    );
    assert!(refusal(&config(128, 8, 128, 53248, 128_256), 33, 1).contains("32 leaves"));
}

fn held_once<'a>(sets: impl Iterator<Item = &'a Runs> + Clone, count: u32) {
    assert_eq!(sets.clone().map(Runs::len).sum::<u32>(), count);
    assert_eq!(
        Runs::new(sets.flat_map(|set| set.as_slice().iter().cloned())),
        Runs::from(0..count)
    );
}

fn check_plan(plan: &ShardPlan, config: &LlamaConfig) {
    let (shards, per_kv) = (plan.shards(), config.q_heads / config.kv_heads);
    held_once(shards.iter().map(|shard| &shard.q_heads), config.q_heads);
    held_once(
        shards.iter().map(|shard| &shard.ffn_leaves),
        shards[0].leaves.count,
    );
    held_once(
        shards.iter().map(|shard| &shard.vocab_tiles),
        config.vocab_size.div_ceil(VOCAB_TILE),
    );
    let rows: Vec<_> = shards.iter().map(RankShard::vocab).collect();
    held_once(rows.iter(), config.vocab_size);
    for shard in shards {
        assert!(!shard.q_heads.is_empty() && !shard.ffn_leaves.is_empty() && !shard.vocab_tiles.is_empty());
        let read = Runs::new(shard.q_heads.iter().map(|head| head / per_kv..head / per_kv + 1));
        assert_eq!(
            shard.kv_heads, read,
            "the kv heads that its q heads read, and no other"
        );
    }
}

fn even(sizes: impl Iterator<Item = u32> + Clone) -> bool {
    sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1
}

proptest! {
    /// Every piece is held by exactly one rank, every rank has some of each, sizes differ by at most one; also after
    /// ranks are lost, and then nobody gives up anything.
    #[test]
    fn pieces_are_held_once_whoever_is_lost(
        kv_heads in 1..9u32, per_kv in 1..9u32, leaves in 1..40u32, vocab in 1..60_000u32, tensor in 1..40u32,
        losses in proptest::collection::vec(0..40u32, 0..6),
    ) {
        let config = config(kv_heads * per_kv, kv_heads, 64, leaves * 64, vocab);
        let leaves = FfnLeaves::of(config.ffn_size).unwrap();
        prop_assert_eq!(leaves.count * leaves.width, config.ffn_size);
        let tiles = vocab.div_ceil(VOCAB_TILE);
        let Ok(mut plan) = ShardPlan::new(&config, Topology::tensor(tensor)) else {
            prop_assert!(tensor > config.q_heads.min(leaves.count).min(tiles));
            return Ok(());
        };
        prop_assert_eq!(plan.shards().len(), tensor as usize);
        check_plan(&plan, &config);
        for lost in losses {
            let Ok(fewer) = plan.without(lost) else {
                prop_assert!(plan.shard(lost).is_none() || plan.shards().len() == 1);
                continue;
            };
            check_plan(&fewer, &config);
            for shard in fewer.shards() {
                let before = plan.shard(shard.rank).unwrap();
                prop_assert!(shard.q_heads.contains_all(&before.q_heads));
                prop_assert!(shard.ffn_leaves.contains_all(&before.ffn_leaves));
                prop_assert!(shard.vocab_tiles.contains_all(&before.vocab_tiles));
            }
            plan = fewer;
            prop_assert!(even(plan.shards().iter().map(|shard| shard.q_heads.len())));
            prop_assert!(even(plan.shards().iter().map(|shard| shard.vocab_tiles.len())));
        }
    }
}
