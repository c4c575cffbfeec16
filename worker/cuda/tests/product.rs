//! Products with weights against sums in doubles, and bit for bit against themselves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{close, numbers, of_bf16, ops, padded, to_bf16};
use llamero_cuda::ops::{Element, Leaves, Ops, Weights};
use llamero_engine::leaf_tree;
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::ORDERS;

/// The value of an E4M3 code (OCP 8-bit floating point, revision 1.0).
fn of_e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = if exponent == 0 {
        mantissa / 512.0
    } else {
        (8.0 + mantissa) * 2f64.powi(exponent - 10)
    };
    if code & 0x80 != 0 { -size } else { size }
}

/// A matrix on the host: `codes[output][input]`.
struct Matrix {
    element: Element,
    outputs: usize,
    inputs: usize,
    codes: Vec<u16>,
    scales: Vec<f32>,
}

impl Matrix {
    fn new(element: Element, outputs: usize, inputs: usize) -> Self {
        let codes = match element {
            Element::Bf16 => to_bf16(&numbers(1, outputs * inputs)),
            // All codes but NaN.
            Element::E4m3 => {
                let draw = |x: &f32| ((x + 1.0) * 126.9) as u16;
                numbers(1, outputs * inputs)
                    .iter()
                    .map(|x| draw(x) | u16::from(x.to_bits() & 1 != 0) << 7)
                    .collect()
            }
        };
        let scales = numbers(2, outputs).iter().map(|x| x + 1.5).collect();
        Self {
            element,
            outputs,
            inputs,
            codes,
            scales,
        }
    }

    fn value(&self, output: usize, input: usize) -> f64 {
        let code = self.codes[output * self.inputs + input];
        match self.element {
            Element::Bf16 => of_bf16(code),
            Element::E4m3 => of_e4m3(code as u8),
        }
    }

    /// The columns of these leaves, on the device.
    fn upload(&self, ops: &Ops, leaves: Leaves, first: usize, scaled: bool) -> Weights {
        let columns = first * leaves.width..(first + leaves.count) * leaves.width;
        let rows = self
            .codes
            .chunks(self.inputs)
            .flat_map(|row| padded(&row[columns.clone()], leaves.width));
        let bytes: Vec<u8> = match self.element {
            Element::Bf16 => rows.flat_map(u16::to_le_bytes).collect(),
            Element::E4m3 => rows.map(|code| code as u8).collect(),
        };
        let stream = ops.stream();
        Weights {
            values: stream.clone_htod(&bytes).unwrap(),
            element: self.element,
            scales: scaled.then(|| stream.clone_htod(&self.scales).unwrap()),
            outputs: self.outputs,
            program: stream.clone_htod(&leaves.program().unwrap()).unwrap().into(),
            leaves,
        }
    }
}

/// `y[root][row][output]`.
fn run(ops: &mut Ops, weights: &Weights, x: &[u16], rows: usize) -> Vec<f32> {
    let stream = ops.stream().clone();
    let x = stream.clone_htod(x).unwrap();
    let mut y = stream
        .alloc_zeros(weights.leaves.roots.len() * rows * weights.outputs)
        .unwrap();
    ops.product(weights, &x, rows, &mut y).unwrap();
    stream.clone_dtoh(&y).unwrap()
}

fn inputs(seed: u64, rows: usize, leaves: usize, width: usize) -> (Vec<u16>, Vec<u16>) {
    let x = to_bf16(&numbers(seed, rows * leaves * width));
    let laid_out = x
        .chunks(leaves * width)
        .flat_map(|row| padded(row, width))
        .collect();
    (x, laid_out)
}

/// Against the reference, then each row alone and at other places of a batch.
fn check(ops: &mut Ops, element: Element, outputs: usize, leaves: u32, width: usize, batches: &[usize]) {
    let matrix = Matrix::new(element, outputs, leaves as usize * width);
    let weights = matrix.upload(ops, Leaves::tree(leaves, 0..leaves, width).unwrap(), 0, true);
    let most = *batches.iter().max().unwrap();
    let (x, laid_out) = inputs(3, most, leaves as usize, width);
    let stride = weights.leaves.stride();
    let all = run(ops, &weights, &laid_out, most);
    let wanted: Vec<f64> = (0..most * outputs)
        .map(|i| {
            let (row, output) = (i / outputs, i % outputs);
            let x = &x[row * matrix.inputs..][..matrix.inputs];
            let sum: f64 = x
                .iter()
                .enumerate()
                .map(|(k, x)| of_bf16(*x) * matrix.value(output, k))
                .sum();
            sum * f64::from(matrix.scales[output])
        })
        .collect();
    close(all.iter().map(|y| f64::from(*y)), &wanted, 1e-5);
    for rows in batches {
        // The last rows, so that each stands in another column than in the whole batch.
        let first = most - rows;
        let part = run(ops, &weights, &laid_out[first * stride..], *rows);
        let same = part
            .iter()
            .zip(&all[first * outputs..])
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(
            same,
            "{element:?}: {rows} rows differ from the same rows among {most}"
        );
    }
}

emulated! {
    fn fp8_products_of_small_leaves() on ORDERS, {
        check(&mut ops(), Element::E4m3, 40, 8, 72, &[1, 7, 16, 17, 64]);
    }

    fn bf16_products_of_small_leaves() on ORDERS, {
        check(&mut ops(), Element::Bf16, 40, 8, 72, &[1, 7, 16, 17, 64]);
    }

    fn products_of_many_leaves() on ORDERS, {
        check(&mut ops(), Element::E4m3, 16, 32, 448, &[1, 3]);
        check(&mut ops(), Element::Bf16, 17, 24, 64, &[1, 9]);
    }

    // L4 and L40S, A100: as many rows as a step has, over as many leaves as `o` and `down` have.
    fn many_rows_and_leaves_fit_smaller_gpus() on ["cc=8.9", "cc=8.0", "cc=9.0"], {
        check(&mut ops(), Element::E4m3, 17, 32, 64, &[3, 33, 60, 64]);
        check(&mut ops(), Element::Bf16, 17, 32, 32, &[33, 64]);
    }

    #[ignore = "minutes on a small machine"]
    fn true_shapes() on ["order=forward"], {
        // `qkv` and `down` of 8B, one rank of TP 8 of `down` of 405B.
        check(&mut ops(), Element::Bf16, 6144, 8, 512, &[1]);
        check(&mut ops(), Element::E4m3, 4096, 32, 448, &[1]);
        check(&mut ops(), Element::E4m3, 16384, 4, 1664, &[1]);
    }

    fn every_code_is_widened_exactly() on ["order=forward"], {
        let mut ops = ops();
        let codes: Vec<u16> = (0..=255).filter(|code| code & 0x7f != 0x7f).collect();
        let outputs = codes.len();
        let matrix = Matrix {
            element: Element::E4m3,
            outputs,
            inputs: 64,
            codes: codes.iter().flat_map(|code| [*code].into_iter().chain([0; 63])).collect(),
            scales: vec![1.0; outputs],
        };
        let weights = matrix.upload(&ops, Leaves::tree(1, 0..1, 64).unwrap(), 0, false);
        let mut x = vec![0; 64];
        x[0] = to_bf16(&[1.0])[0];
        let y = run(&mut ops, &weights, &x, 1);
        for (code, y) in codes.iter().zip(y) {
            assert_eq!(f64::from(y), of_e4m3(*code as u8), "code {code:#x}");
        }
    }

    fn one_dot_product_has_the_same_bits_at_every_place_of_the_tile() on ["order=forward"], {
        let mut ops = ops();
        let (leaves, width, places) = (8, 128, 32);
        let one = Matrix::new(Element::E4m3, 1, leaves * width);
        let matrix = Matrix { outputs: places, codes: one.codes.repeat(places), scales: vec![1.0; places], ..one };
        let weights = matrix.upload(&ops, Leaves::tree(8, 0..8, width).unwrap(), 0, false);
        let (_, x) = inputs(3, 1, leaves, width);
        let y = run(&mut ops, &weights, &x.repeat(64), 64);
        assert!(y.iter().all(|value| value.to_bits() == y[0].to_bits()));
        assert!(y[0] != 0.0);
    }

    fn ranks_join_to_the_bits_of_one() on ["order=forward", "order=seed:5"], {
        let mut ops = ops();
        let (total, width, outputs, rows) = (9u32, 64, 16, 3);
        let matrix = Matrix::new(Element::E4m3, outputs, total as usize * width);
        let (x, laid_out) = inputs(4, rows, total as usize, width);
        let whole = matrix.upload(&ops, Leaves::tree(total, 0..total, width).unwrap(), 0, false);
        let whole = run(&mut ops, &whole, &laid_out, rows);
        for cuts in [vec![0, 4, 9], vec![0, 3, 6, 9], vec![0, 1, 8, 9]] {
            let mut roots = Vec::new();
            for owned in cuts.windows(2).map(|cut| cut[0]..cut[1]) {
                let weights = matrix.upload(&ops, Leaves::tree(total, owned.clone(), width).unwrap(), owned.start as usize, false);
                let columns = owned.start as usize * width..owned.end as usize * width;
                let mine: Vec<u16> = x.chunks(matrix.inputs).flat_map(|row| padded(&row[columns.clone()], width)).collect();
                let y = run(&mut ops, &weights, &mine, rows);
                let parts = y.chunks(rows * outputs).map(<[f32]>::to_vec);
                roots.extend(leaf_tree::maximal_subtrees(total, &owned.clone().into()).into_iter().zip(parts));
            }
            let mut add = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).map(|(a, b)| a + b).collect();
            let joined = leaf_tree::join(&(0..total), &mut roots.into_iter(), &mut add).unwrap();
            assert!(joined.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()), "{cuts:?}");
        }
    }

    fn shapes_that_do_not_fit_are_refused() on ["order=forward"], {
        let mut ops = ops();
        let matrix = Matrix::new(Element::Bf16, 16, 128);
        let weights = matrix.upload(&ops, Leaves::tree(2, 0..2, 64).unwrap(), 0, true);
        let stream = ops.stream().clone();
        let x = stream.alloc_zeros::<u16>(127).unwrap();
        let mut y = stream.alloc_zeros::<f32>(16).unwrap();
        let error = ops.product(&weights, &x, 1, &mut y).unwrap_err().to_string();
        assert!(error.contains("127 elements, 128 are needed"), "{error}");
        let x = stream.alloc_zeros::<u16>(65 * 128).unwrap();
        assert!(ops.product(&weights, &x, 65, &mut y).unwrap_err().to_string().contains("1 to 64"));
        assert!(ops.product(&weights, &x, 0, &mut y).is_err());
    }
}
