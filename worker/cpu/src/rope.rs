//! Tables of the rotary embedding.

/// Cosines and sines of all positions, `[position][head_dim / 2]`.
pub(crate) struct Rope {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Angles of `positions` positions for the given frequencies (radians a token), in f64, rounded once.
    pub(crate) fn new(frequencies: &[f64], positions: usize) -> Self {
        let angle = |i: usize| (i / frequencies.len()) as f64 * frequencies[i % frequencies.len()];
        let all = 0..positions * frequencies.len();
        Self {
            half: frequencies.len(),
            cos: all.clone().map(|i| angle(i).cos() as f32).collect(),
            sin: all.map(|i| angle(i).sin() as f32).collect(),
        }
    }

    /// Cosines and sines of one position.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// `theta^(-2i/d)` for `i` in `0 .. d/2` (Su et al., 2021, §3.2.2).
pub(crate) fn frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2)
        .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64))
        .collect()
}
