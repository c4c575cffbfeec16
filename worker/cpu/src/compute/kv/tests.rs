use llamero_checkpoint::e4m3;

use super::*;

const TYPES: [KvDtype; 2] = [KvDtype::Bf16, KvDtype::Fp8E4m3];

#[test]
fn a_block_costs_what_its_tokens_do() {
    for head_dim in [32, 64, 128] {
        for block_size in [16, 32, 64, 128, 256] {
            let [bf16, fp8] = TYPES.map(|dtype| {
                let shape = KvShape::new(3, 5, head_dim, block_size, dtype).unwrap();
                assert_eq!(shape.block_bytes(), block_size * shape.token_bytes());
                shape.block_bytes()
            });
            // What the operator counts with.
            let counted = llamero_settings::kv::bytes_in_fp8((bf16 / block_size) as u64, head_dim as u64);
            assert_eq!(fp8 as u64, counted * block_size as u64);
        }
    }
    assert!(KvShape::new(1, 1, 64, 24, KvDtype::Bf16).is_err());
}

#[test]
fn a_saved_block_comes_back_in_another_place() {
    for dtype in TYPES {
        let shape = KvShape::new(2, 3, 32, 16, dtype).unwrap();
        let mut cache = KvCache::new(shape, 4).unwrap();
        let row: Vec<f32> = (0..32).map(|i| i as f32).collect();
        for (layer, head) in [(0, 0), (1, 2)] {
            cache.write(Kernel::detect(), layer, &[2], head, 5, &row, &row);
        }
        let mut saved = Vec::new();
        cache.save(2, &mut saved);
        assert_eq!(saved.len(), shape.block_bytes());
        cache.restore(1, &saved);
        cache.copy(1, 3);
        for (layer, head) in [(0, 0), (0, 1), (1, 2)] {
            for block in [1, 3] {
                assert_eq!(
                    cache.tile(layer, &[block], head, 0),
                    cache.tile(layer, &[2], head, 0)
                );
                for half in [Half::Keys, Half::Values] {
                    let scales = [block, 2].map(|block| scales(&cache, layer, &[block], head, half, 16));
                    assert_eq!(scales[0], scales[1]);
                }
            }
        }
        assert!(saved.iter().any(|byte| *byte != 0));
    }
}

fn scales(cache: &KvCache, layer: usize, table: &[u32], head: usize, half: Half, len: usize) -> Vec<f32> {
    let mut scales = vec![0.0; len];
    if cache.shape().element == Element::E4m3 {
        cache.scales(layer, table, head, 0, half, &mut scales);
    }
    scales
}

/// Every element comes back as its code times the scale of its token and head, whatever the size of blocks: read as the kernel
/// reads steps.
#[test]
fn what_is_written_is_what_the_kernel_reads() {
    let (head_dim, positions, heads) = (64usize, 45usize, 2);
    let element = |position: usize, head: usize, d: usize| {
        ((position * 31 + head * 17 + d * 7) % 101) as f32 * (position as f32 - 20.5)
    };
    for block_size in [16, 32, 64] {
        let shape = KvShape::new(1, heads, head_dim, block_size, KvDtype::Fp8E4m3).unwrap();
        let mut cache = KvCache::new(shape, 6).unwrap();
        let table = &[4, 0, 5][..positions.div_ceil(block_size)];
        for position in 0..positions {
            for head in 0..heads {
                let key: Vec<f32> = (0..head_dim).map(|d| element(position, head, d)).collect();
                let value: Vec<f32> = key.iter().map(|key| -2.5 * key).collect();
                cache.write(Kernel::detect(), 0, table, head, position, &key, &value);
            }
        }
        for head in 0..heads {
            let key_scales = scales(&cache, 0, table, head, Half::Keys, positions);
            let value_scales = scales(&cache, 0, table, head, Half::Values, positions);
            for position in 0..positions {
                let (keys, upper) = cache.keys(0, table, head, position / LANES * LANES);
                let values = cache.values(0, table, head, position);
                for d in 0..head_dim {
                    let want = element(position, head, d);
                    let lane = position % LANES;
                    let key = match upper {
                        None => keys[d / 2 * 64 + Element::E4m3.index(lane, d % 2)],
                        Some(upper) => [keys, upper][lane / 16][d / 2 * 32 + 2 * (lane % 16) + d % 2],
                    };
                    let near = |code: u8, scale: f32, want: f32| {
                        let got = e4m3::decode(code) * scale;
                        assert!((got - want).abs() <= (want.abs() / 16.0).max(scale / 1024.0));
                    };
                    near(key, key_scales[position], want);
                    let in_tile = position % shape.tile();
                    let step = d / LANES * shape.tile() / 2 + in_tile / 2;
                    let value = values[step * 64 + Element::E4m3.index(d % LANES, in_tile % 2)];
                    near(value, value_scales[position], -2.5 * want);
                }
            }
        }
    }
}
