use super::*;
use crate::math::{dot_pair, flush, from_bf16};
use crate::pack::pack_row;

/// Every level that runs here; a test that wants AVX-512 says so where it is missing.
fn kernels() -> Vec<Kernel> {
    let found: Vec<_> = [Level::Portable, Level::Avx2, Level::Avx512]
        .into_iter()
        .filter_map(|level| Kernel::new(level).ok())
        .collect();
    if found.len() < 3 {
        println!("note: this CPU runs only {found:?}; the other kernels are not tested here");
    }
    found
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Mostly near 1, at times subnormal or tiny or huge, never infinite.
    fn bf16(&mut self) -> u16 {
        let bits = self.next();
        let exponent = match bits >> 28 {
            0 => 0,
            1 => 60 + (bits >> 16) % 8,
            2 => 1 + (bits >> 16) % 3,
            _ => 118 + (bits >> 16) % 12,
        };
        (bits & 0x807f) as u16 | (exponent as u16) << 7
    }
}

/// Sums by the definition, one at a time.
fn by_hand(tile: &Tile<'_>, rows: &[Vec<f32>], sums: &mut [f32]) {
    for block in 0..tile.blocks {
        for row in 0..tile.rows {
            for lane in 0..LANES {
                let sum = &mut sums[(block * tile.rows + row) * LANES + lane];
                for step in 0..tile.steps {
                    let input = tile.inputs[row * tile.input_stride + step];
                    let (even, odd) = (
                        flush(from_bf16(input as u16)),
                        flush(from_bf16((input >> 16) as u16)),
                    );
                    let weights = &rows[block * LANES + lane][2 * step..];
                    *sum = dot_pair(*sum, even, odd, flush(weights[0]), flush(weights[1]));
                }
            }
        }
    }
}

/// A matrix as kernels read it, and its rows.
fn random_matrix(random: &mut Random, element: Element, n: usize, k: usize) -> (Vec<u8>, Vec<Vec<f32>>) {
    let mut packed = vec![0; element.packed_bytes(n, k)];
    let mut matrix = Vec::new();
    for row in 0..n {
        let bytes: Vec<u8> = match element {
            Element::Bf16 => (0..k).flat_map(|_| random.bf16().to_le_bytes()).collect(),
            Element::E4m3 => (0..k).map(|_| (random.next() >> 8) as u8 & 0xf7).collect(),
        };
        pack_row(element, &mut packed, k, row, 0, &bytes);
        matrix.push(match element {
            Element::Bf16 => bytes
                .chunks_exact(2)
                .map(|b| from_bf16(u16::from_le_bytes([b[0], b[1]])))
                .collect(),
            Element::E4m3 => bytes
                .iter()
                .map(|b| llamero_checkpoint::e4m3::decode(*b))
                .collect(),
        });
    }
    (packed, matrix)
}

#[test]
fn every_kernel_gives_the_bits_of_the_definition() {
    let mut random = Random(7);
    for element in [Element::Bf16, Element::E4m3] {
        for rows in 1..=MAX_ROWS {
            for (blocks, steps) in [(1, 1), (2, 5), (4, 33), (7, 64)] {
                let k = 2 * steps;
                let (packed, matrix) = random_matrix(&mut random, element, blocks * LANES, k);
                let input_stride = steps + 3;
                let inputs: Vec<u32> = (0..rows * input_stride)
                    .map(|_| u32::from(random.bf16()) | u32::from(random.bf16()) << 16)
                    .collect();
                let block_stride = element.block_bytes(k);
                let tile = Tile {
                    element,
                    weights: &packed,
                    upper: None,
                    block_stride,
                    blocks,
                    steps,
                    inputs: &inputs,
                    input_stride,
                    rows,
                };
                let start: Vec<f32> = (0..blocks * rows * LANES)
                    .map(|i| if i % 3 == 0 { 0.0 } else { from_bf16(random.bf16()) })
                    .collect();
                let mut want = start.clone();
                by_hand(&tile, &matrix, &mut want);
                // The same weights with lanes 0 to 15 and 16 to 31 apart, as keys of two blocks of 16 positions are.
                let together = match element {
                    Element::Bf16 => 64,
                    Element::E4m3 => 8,
                };
                let halves = [0, 1].map(|half| -> Vec<u8> {
                    packed
                        .chunks_exact(together)
                        .skip(half)
                        .step_by(2)
                        .flatten()
                        .copied()
                        .collect()
                });
                let apart = Tile {
                    weights: &halves[0],
                    upper: Some(&halves[1]),
                    block_stride: block_stride / 2,
                    ..tile
                };
                for kernel in kernels() {
                    let mut got = start.clone();
                    tile.run(kernel, &mut got);
                    let mut split = start.clone();
                    apart.run(kernel, &mut split);
                    assert_eq!(
                        split, got,
                        "{kernel:?} {element:?} rows {rows} blocks {blocks} steps {steps}"
                    );
                    let differs = want
                        .iter()
                        .zip(&got)
                        .position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(
                        differs, None,
                        "{kernel:?} {element:?} rows {rows} blocks {blocks} steps {steps}"
                    );
                }
            }
        }
    }
}

/// One input of 1 against every code: the sum is the code's value.
#[test]
fn every_e4m3_code_is_exact_in_every_kernel() {
    let mut packed = vec![0; Element::E4m3.packed_bytes(256, 2)];
    for code in 0..=255u8 {
        pack_row(Element::E4m3, &mut packed, 2, code as usize, 0, &[code, 0]);
    }
    let inputs = [0x3f80];
    let block_stride = Element::E4m3.block_bytes(2);
    for kernel in kernels() {
        let mut sums = [0.0; 256];
        let tile = Tile {
            element: Element::E4m3,
            weights: &packed,
            upper: None,
            block_stride,
            blocks: 8,
            steps: 1,
            inputs: &inputs,
            input_stride: 1,
            rows: 1,
        };
        tile.run(kernel, &mut sums);
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            let want = llamero_checkpoint::e4m3::decode(code);
            assert_eq!(sums[code as usize], want, "{kernel:?} code {code:#04x}");
        }
    }
}
