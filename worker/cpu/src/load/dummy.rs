//! Weights that are made up: random ones of a size that keeps activations in range, straight in the packed layout. They cost one
//! pass over memory, and kernels take as long with them as with real ones.

use crate::disjoint::DisjointSlice;
use crate::kernel::pack::{Element, LANES};
use crate::layout::{MatrixAt, Role};
use crate::pool::Pool;
use crate::weights::{Store, Weights};

/// Bytes made at a time.
const CHUNK: usize = 1 << 18;
/// Rows of the embedding that are made; looking a token up takes no time worth measuring.
pub(crate) const EMBEDDINGS: usize = 256;

/// A run of the region and how its bytes look: `(random & mask) | set`.
struct Run {
    at: usize,
    bytes: usize,
    mask: u64,
    set: u64,
}

/// Fill the region, `hidden` wide. The same `seed` gives the same weights.
pub(crate) fn fill(weights: &mut Weights, hidden: usize, seed: u64, pool: &mut Pool) -> std::io::Result<()> {
    let layout = weights.layout().clone();
    let mut runs = Vec::new();
    let mut floats: Vec<(usize, Vec<f32>)> = Vec::new();
    let mut matrix = |at: MatrixAt| {
        let (mask, set, scale) = pattern(at.element, at.k);
        add(
            &mut runs,
            (at.weights, at.element.packed_bytes(at.n, at.k)),
            mask,
            set,
        );
        floats.push((at.scales, vec![scale; at.n.next_multiple_of(LANES)]));
    };
    for layer in &layout.layers {
        for role in Role::ALL {
            matrix(layer.matrix(role));
        }
    }
    if let Some(head) = layout.head {
        matrix(head.matrix);
    }
    floats.extend(layout.head.map(|head| (head.norm, vec![1.0; hidden])));
    for layer in &layout.layers {
        floats.extend([layer.input_norm, layer.post_norm].map(|at| (at, vec![1.0; hidden])));
    }
    if let Some(table) = layout.embedding {
        let (mask, set, _) = pattern(Element::Bf16, 1);
        add(
            &mut runs,
            (table, EMBEDDINGS * hidden * size_of::<u16>()),
            mask,
            set,
        );
    }
    let Store::Memory(memory) = weights.store(None) else {
        return Err(std::io::Error::other("made-up weights live in this process only"));
    };
    pool.run(runs.len(), &|number| {
        let Some(run) = runs.get(number) else { return };
        // SAFETY: runs are parts of different tensors, or different parts of one.
        write(unsafe { memory.part(run.at..run.at + run.bytes) }, run, seed);
    });
    put(&memory, &floats);
    weights.set_complete();
    Ok(())
}

fn put(memory: &DisjointSlice<'_, u8>, floats: &[(usize, Vec<f32>)]) {
    for (at, values) in floats {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        // SAFETY: one thread writes them, one after the other.
        unsafe { memory.part(*at..*at + bytes.len()) }.copy_from_slice(bytes);
    }
}

/// Cut a tensor into runs of which one thread makes one at a time.
fn add(runs: &mut Vec<Run>, (at, bytes): (usize, usize), mask: u64, set: u64) {
    runs.extend((0..bytes).step_by(CHUNK).map(|from| Run {
        at: at + from,
        bytes: CHUNK.min(bytes - from),
        mask,
        set,
    }));
}

/// How random bits become elements of either sign around 1 / √k, and the scale of each row.
fn pattern(element: Element, k: usize) -> (u64, u64, f32) {
    let root = (k as f32).sqrt();
    match element {
        // ±0.5 to ±0.94: sign and mantissa are random, the exponent is that of 0.5.
        Element::E4m3 => (0x8787_8787_8787_8787, 0x3030_3030_3030_3030, 1.4 / root),
        Element::Bf16 => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "half of the logarithm of a size: between 0 and 32"
            )]
            let exponent = 127 - root.log2().round() as u64;
            (
                0x807f_807f_807f_807f,
                (exponent << 7) * 0x0001_0001_0001_0001,
                1.0,
            )
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014), seeded by the place.
#[expect(clippy::indexing_slicing, reason = "chunks are no longer than a word")]
fn write(bytes: &mut [u8], run: &Run, seed: u64) {
    let mut state = seed ^ (run.at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in bytes.chunks_mut(size_of::<u64>()) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word ^= word >> 27;
        let word = (word & run.mask | run.set).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}
