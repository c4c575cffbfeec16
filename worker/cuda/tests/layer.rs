//! Norms, rotary positions, SiLU and embedding against doubles.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{close, numbers, of_bf16, ops, padded, to_bf16};
use llamero_cuda::ops::{Added, Cache, Places, RootValues, Roots, RopeShape};
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::ORDERS;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

emulated! {
    fn embeds() on ["order=forward"], {
        let mut ops = ops();
        let stream = ops.stream().clone();
        let table = to_bf16(&numbers(1, 10 * 72));
        let (on_device, tokens) = (stream.clone_htod(&table).unwrap(), stream.clone_htod(&[7u32, 0, 9]).unwrap());
        let mut hidden = stream.alloc_zeros(3 * 72).unwrap();
        ops.embed(&on_device, &tokens, 3, &mut hidden, 72).unwrap();
        let wanted: Vec<f64> = [7, 0, 9].iter().flat_map(|token| &table[token * 72..][..72]).map(|x| of_bf16(*x)).collect();
        close(stream.clone_dtoh(&hidden).unwrap().into_iter().map(f64::from), &wanted, 0.0);
    }

    fn joins_roots_in_the_order_of_their_tree() on ORDERS, {
        let mut ops = ops();
        let stream = ops.stream().clone();
        // Neither whole blocks nor whole warps.
        let (rows, width) = (3, 332);
        let n = rows * width;
        let (hidden, values, factors) = (numbers(1, n), numbers(3, 3 * n), numbers(4, width));
        let (roots, scales) = (stream.clone_htod(&values).unwrap(), stream.clone_htod(&factors).unwrap());
        let joins = stream.clone_htod(&[1u8, 2, 0, 1]).unwrap();
        let mut joined = |count, joins, scales: Option<&_>| {
            let mut to = stream.clone_htod(&hidden).unwrap();
            ops.join_roots(&mut to, Roots { values: RootValues::Here(&roots), count, joins, scales }, rows, width).unwrap();
            bits(&stream.clone_dtoh(&to).unwrap())
        };
        let tree = |i: usize| values[i] + (values[n + i] + values[2 * n + i]);
        let wanted = |sum: &dyn Fn(usize) -> f32| bits(&(0..n).map(|i| hidden[i] + sum(i)).collect::<Vec<_>>());
        assert_eq!(joined(3, Some(&joins), None), wanted(&tree));
        assert_eq!(joined(3, Some(&joins), Some(&scales)), wanted(&|i| tree(i) * factors[i % width]));
        assert_eq!(joined(1, None, None), wanted(&|i| values[i]));
        let mut to = stream.clone_htod(&hidden).unwrap();
        let too_many = Roots { values: RootValues::Here(&roots), count: 33, joins: None, scales: None };
        assert!(ops.join_roots(&mut to, too_many, rows, width).unwrap_err().to_string().contains("33 roots"));
    }

    fn adds_a_product_and_norms() on ORDERS, {
        let mut ops = ops();
        let stream = ops.stream().clone();
        let (rows, leaves, leaf, epsilon) = (3, 8, 72, 1e-5f32);
        let width = leaves * leaf;
        let (hidden, weight) = (numbers(1, rows * width), numbers(2, width));
        let (values, factors) = (numbers(3, rows * width), numbers(4, width));
        let mut on_device = stream.clone_htod(&hidden).unwrap();
        let (weights, product) = (stream.clone_htod(&weight).unwrap(), stream.clone_htod(&values).unwrap());
        let scales = stream.clone_htod(&factors).unwrap();
        let mut y = stream.alloc_zeros(rows * leaves * 128).unwrap();
        let added = Added { values: &product, scales: Some(&scales) };
        ops.add_norm(&mut on_device, Some(added), &weights, &mut y, rows, (leaf, epsilon), None).unwrap();
        let sums: Vec<f32> = (0..rows * width).map(|i| hidden[i] + values[i] * factors[i % width]).collect();
        assert_eq!(bits(&stream.clone_dtoh(&on_device).unwrap()), bits(&sums));
        let wanted: Vec<f64> = sums
            .chunks(width)
            .flat_map(|row| {
                let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                let factor = 1.0 / (mean + f64::from(epsilon)).sqrt();
                let normed: Vec<f64> = row.iter().zip(&weight).map(|(x, w)| f64::from(*x) * factor * f64::from(*w)).collect();
                padded(&normed, leaf)
            })
            .collect();
        let y = stream.clone_dtoh(&y).unwrap();
        close(y.iter().map(|y| of_bf16(*y)), &wanted, 4e-3);
        // A row alone has the same bits.
        let mut last = stream.clone_htod(&sums[2 * width..]).unwrap();
        let mut alone = stream.alloc_zeros(leaves * 128).unwrap();
        ops.add_norm(&mut last, None, &weights, &mut alone, 1, (leaf, epsilon), None).unwrap();
        assert_eq!(stream.clone_dtoh(&alone).unwrap(), y[2 * leaves * 128..]);
    }

    fn multiplies_by_silu() on ORDERS, {
        let mut ops = ops();
        let stream = ops.stream().clone();
        let (rows, width, leaf) = (2, 1536, 48);
        let gate_up: Vec<f32> = numbers(1, rows * 2 * width).iter().map(|x| 20.0 * x).collect();
        let on_device = stream.clone_htod(&gate_up).unwrap();
        let mut y = stream.alloc_zeros(rows * 32 * 64).unwrap();
        ops.silu_mul(&on_device, &mut y, rows, width, leaf).unwrap();
        let wanted: Vec<f64> = gate_up
            .chunks(2 * width)
            .flat_map(|row| {
                let product = |i: usize| f64::from(row[i]) / (1.0 + (-f64::from(row[i])).exp()) * f64::from(row[width + i]);
                padded(&(0..width).map(product).collect::<Vec<_>>(), leaf)
            })
            .collect();
        close(stream.clone_dtoh(&y).unwrap().iter().map(|y| of_bf16(*y)), &wanted, 4e-3);
    }

    fn rotates_and_fills_the_cache() on ORDERS, {
        let mut ops = ops();
        let stream = ops.stream().clone();
        let shape = RopeShape { q_heads: 3, kv_heads: 1, dim: 64, block_tokens: 16, table_stride: 2 };
        let (rows, half, positions) = (2, 32, [5u32, 17]);
        let tables = [3u32, 0, 2, 1];
        let qkv = numbers(1, rows * 5 * 64);
        let angle = |i: usize| (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64);
        let cos: Vec<f32> = (0..32 * half).map(|i| angle(i).cos() as f32).collect();
        let sin: Vec<f32> = (0..32 * half).map(|i| angle(i).sin() as f32).collect();
        let [from, cos_table, sin_table] = [&qkv, &cos, &sin].map(|values| stream.clone_htod(values).unwrap());
        let on_device = [&positions[..], &tables[..], &[1, 0]].map(|words| stream.clone_htod(words).unwrap());
        let places = Places { positions: &on_device[0], slots: &on_device[2], tables: &on_device[1] };
        let mut q = stream.alloc_zeros(rows * 3 * 64).unwrap();
        let (keys, values) = (stream.alloc_zeros(4 * 16 * 64).unwrap(), stream.alloc_zeros(4 * 16 * 64).unwrap());
        let cache = Cache { keys: &keys, values: &values };
        ops.rope_kv(shape, &from, (&cos_table, &sin_table), &places, &mut q, &cache, rows)
            .unwrap();
        let rotated = |row: usize, head: usize| -> Vec<f64> {
            let x = &qkv[(row * 5 + head) * 64..][..64];
            let at = |i: usize| positions[row] as usize * half + i % half;
            (0..64)
                .map(|i| {
                    let (c, s) = (f64::from(cos[at(i)]), f64::from(sin[at(i)]));
                    let other = f64::from(x[(i + half) % 64]);
                    f64::from(x[i]) * c + if i < half { -other } else { other } * s
                })
                .collect()
        };
        let wanted: Vec<f64> = (0..rows).flat_map(|row| (0..3).flat_map(|head| rotated(row, head)).collect::<Vec<_>>()).collect();
        close(stream.clone_dtoh(&q).unwrap().into_iter().map(f64::from), &wanted, 1e-6);
        let (keys, values) = (stream.clone_dtoh(&keys).unwrap(), stream.clone_dtoh(&values).unwrap());
        for (row, (block, token)) in [(2, 5), (0, 1)].into_iter().enumerate() {
            let place = (block * 16 + token) * 64;
            close(keys[place..][..64].iter().map(|x| of_bf16(*x)), &rotated(row, 3), 4e-3);
            assert_eq!(values[place..][..64], to_bf16(&qkv[(row * 5 + 4) * 64..][..64]));
        }
        let filled = keys.chunks(64).filter(|row| row.iter().any(|x| *x != 0)).count();
        assert_eq!(filled, 2, "only the two tokens' places are written");
    }

    fn a_row_of_405b_is_normed() on ["order=forward"], {
        let mut ops = ops();
        let stream = ops.stream().clone();
        let (width, leaf) = (16_384, 2048);
        let (row, weight) = (numbers(1, width), numbers(2, width));
        let (mut hidden, weights) = (stream.clone_htod(&row).unwrap(), stream.clone_htod(&weight).unwrap());
        let mut y = stream.alloc_zeros(width).unwrap();
        ops.add_norm(&mut hidden, None, &weights, &mut y, 1, (leaf, 1e-5), None).unwrap();
        let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
        let wanted: Vec<f64> = row.iter().zip(&weight).map(|(x, w)| f64::from(*x * *w) / (mean + 1e-5).sqrt()).collect();
        close(stream.clone_dtoh(&y).unwrap().iter().map(|y| of_bf16(*y)), &wanted, 4e-3);
    }

    fn tables_change_and_rows_are_gathered() on ORDERS, {
        let mut ops = ops();
        let stream = ops.stream().clone();
        let mut tables = stream.clone_htod(&[9u32; 6]).unwrap();
        let entries = stream.clone_htod(&[0u32, 2, 5, 1, 0, 7]).unwrap();
        ops.update_tables(&entries, 2, &mut tables, 3).unwrap();
        assert_eq!(stream.clone_dtoh(&tables).unwrap(), [9, 9, 5, 7, 9, 9]);
        let from: Vec<u16> = (0..4 * 128).collect();
        let (on_device, rows) = (stream.clone_htod(&from).unwrap(), stream.clone_htod(&[3u32, 1]).unwrap());
        let mut to = stream.alloc_zeros::<u16>(3 * 128).unwrap();
        ops.gather_rows(&on_device, (&rows, 2), (&mut to, 1), 128).unwrap();
        let to = stream.clone_dtoh(&to).unwrap();
        assert!(to[..128].iter().all(|x| *x == 0));
        assert_eq!(to[128..], [&from[3 * 128..], &from[128..2 * 128]].concat());
    }
}
