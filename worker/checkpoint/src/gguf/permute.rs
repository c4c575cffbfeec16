//! The order of rows in q and k projections.
//!
//! Hugging Face rotates element `j` of a head with element `j + head_dim / 2`; llama.cpp rotates neighbours, and its
//! converter interleaves the rows of q and k accordingly. Undoing that is a permutation of rows inside each head.

/// The row of the GGUF tensor that becomes row `row` of the Hugging Face tensor, for heads of `head_dim` rows.
#[must_use]
pub fn unpermuted_row(row: u64, head_dim: u64) -> u64 {
    let (head, inside) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + (inside % half) * 2 + inside / half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_become_neighbours() {
        let order: Vec<_> = (0..12).map(|row| unpermuted_row(row, 6)).collect();
        assert_eq!(order, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
