use proptest::prelude::*;

use super::*;

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

#[test]
fn smollm2_over_two() {
    let shards = ShardPlan::all(&smollm2(), 2).unwrap();
    assert_eq!(
        (shards[0].q_heads.clone(), shards[1].q_heads.clone()),
        (0..5, 5..9)
    );
    assert_eq!(
        (shards[0].kv_heads.clone(), shards[1].kv_heads.clone()),
        (0..2, 1..3)
    );
    assert_eq!(
        shards[1].slice(TensorKind::O),
        Slice {
            rows: 0..576,
            cols: 320..576
        }
    );
    assert_eq!(
        shards[1].slice(TensorKind::Gate),
        Slice {
            rows: 768..1536,
            cols: 0..576
        }
    );
    assert_eq!(
        shards[1].slice(TensorKind::Head),
        Slice {
            rows: 24576..49152,
            cols: 0..576
        }
    );
}

#[test]
fn too_many_ranks_are_refused() {
    let refusal = ShardPlan::new(&smollm2(), 10, 0).unwrap_err().to_string();
    assert_eq!(
        refusal,
        "tensor 10 is more than 9 q heads: use tensor 9 or less, and more replicas for more throughput"
    );
    assert!(ShardPlan::new(&smollm2(), u32::MAX, 0).is_err());
    assert!(ShardPlan::all(&smollm2(), 0).is_err());
    assert_eq!(
        ShardPlan::new(&smollm2(), 2, 2),
        Err(ShardError::NoSuchRank { tensor: 2, rank: 2 })
    );
    let wide = ShardPlan::new(&config(128, 8, 128, 53248, 128_256), 33, 0)
        .unwrap_err()
        .to_string();
    assert!(wide.contains("32 leaves"), "{wide}");
}

fn covers<'a>(pieces: impl Iterator<Item = &'a Range<u32>>, count: u32) {
    let mut end = 0;
    for piece in pieces {
        assert_eq!(piece.start, end);
        assert!(piece.end > piece.start);
        end = piece.end;
    }
    assert_eq!(end, count);
}

proptest! {
    /// Every piece is held by exactly one rank, every rank has some of each, sizes differ by at most one.
    #[test]
    fn pieces_cover_the_model_once(
        kv_heads in 1..9u32, per_kv in 1..9u32, leaves in 1..40u32, vocab in 1..60_000u32, tensor in 1..40u32,
    ) {
        let config = config(kv_heads * per_kv, kv_heads, 64, leaves * 64, vocab);
        let leaves = FfnLeaves::of(config.ffn_size).unwrap();
        prop_assert_eq!(leaves.count * leaves.width, config.ffn_size);
        let tiles = vocab.div_ceil(VOCAB_TILE);
        match ShardPlan::all(&config, tensor) {
            Err(_) => prop_assert!(tensor > config.q_heads.min(leaves.count).min(tiles)),
            Ok(shards) => {
                prop_assert_eq!(shards.len(), tensor as usize);
                covers(shards.iter().map(|shard| &shard.q_heads), config.q_heads);
                covers(shards.iter().map(|shard| &shard.ffn_leaves), leaves.count);
                covers(shards.iter().map(|shard| &shard.vocab), vocab);
                let sizes = || shards.iter().map(|shard| shard.q_heads.len());
                prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
                for shard in &shards {
                    prop_assert_eq!(shard.vocab.start % VOCAB_TILE, 0);
                    for head in shard.q_heads.clone() {
                        prop_assert!(shard.kv_heads.contains(&(head / per_kv)));
                    }
                    let used = |kv: u32| shard.q_heads.clone().any(|head| head / per_kv == kv);
                    prop_assert!(shard.kv_heads.clone().all(used), "no kv head without a q head that reads it");
                }
            }
        }
    }
}
