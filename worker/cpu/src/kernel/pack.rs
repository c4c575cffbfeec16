//! The layout in which the kernels read weights.
//!
//! Rows of a matrix `[n, k]` (one row per output) go into blocks of 32 outputs. A block holds `k / 2` steps; a step holds the
//! weights of two consecutive inputs for all 32 outputs, so that every lane of a register belongs to one output and
//! walks along `k` alone. One byte order per element type:
//! - bf16, 128 bytes a step: output `o`, element `e` at index `2 o + e`, two registers.
//! - E4M3, 64 bytes a step: the order in which the bytes of one register unpack into the two registers of bf16.

/// Outputs in a block.
pub(crate) const LANES: usize = 32;

/// Element type of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    /// 16-bit brain float.
    Bf16,
    /// 8-bit float with 4 exponent and 3 mantissa bits.
    E4m3,
}

impl Element {
    /// Bytes of one step of one block.
    pub(crate) const fn step_bytes(self) -> usize {
        match self {
            Self::Bf16 => 4 * LANES,
            Self::E4m3 => 2 * LANES,
        }
    }

    /// Bytes of a packed matrix of `n` outputs and `k` inputs.
    pub(crate) const fn packed_bytes(self, n: usize, k: usize) -> usize {
        n.div_ceil(LANES) * self.block_bytes(k)
    }

    /// Bytes of one block over `k` inputs.
    pub(crate) const fn block_bytes(self, k: usize) -> usize {
        k.div_ceil(2) * self.step_bytes()
    }

    /// Bytes of one element.
    pub(crate) const fn size(self) -> usize {
        self.step_bytes() / (2 * LANES)
    }

    /// Place of output `o` (in the block), element `e` (0 or 1) inside a step, in elements.
    #[inline(always)]
    pub(crate) const fn index(self, o: usize, e: usize) -> usize {
        match self {
            Self::Bf16 => 2 * o + e,
            // Unpacking works in the four quarters of a register: its low eight bytes go to the first result.
            Self::E4m3 => 16 * (o % 16 / 4) + 8 * (o / 16) + 2 * (o % 4) + e,
        }
    }
}

/// Write the elements `from_k ..` of row `row`, given as little-endian bytes, into a packed matrix of `k` inputs.
pub(crate) fn pack_row(
    element: Element,
    packed: &mut [u8],
    k: usize,
    row: usize,
    from_k: usize,
    bytes: &[u8],
) {
    let size = element.size();
    let start = row / LANES * element.block_bytes(k);
    let block = &mut packed[start..start + element.block_bytes(k)];
    let step_bytes = element.step_bytes();
    let places = [
        element.index(row % LANES, 0) * size,
        element.index(row % LANES, 1) * size,
    ];
    for (i, value) in bytes.chunks_exact(size).enumerate() {
        let at = (from_k + i) / 2 * step_bytes + places[(from_k + i) % 2];
        block[at..at + size].copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_its_own_place() {
        for element in [Element::Bf16, Element::E4m3] {
            let mut seen = [false; 2 * LANES];
            for o in 0..LANES {
                for e in 0..2 {
                    assert!(!std::mem::replace(&mut seen[element.index(o, e)], true));
                }
            }
        }
    }

    #[test]
    fn a_row_lands_in_its_block() {
        let mut packed = vec![0; Element::E4m3.packed_bytes(40, 6)];
        pack_row(Element::E4m3, &mut packed, 6, 33, 1, &[7, 8, 9]);
        let block = &packed[3 * 64..];
        assert_eq!(block[Element::E4m3.index(1, 1)], 7);
        assert_eq!(block[64 + Element::E4m3.index(1, 0)], 8);
        assert_eq!(block[64 + Element::E4m3.index(1, 1)], 9);
        assert_eq!(packed.iter().filter(|b| **b != 0).count(), 3);
    }
}
