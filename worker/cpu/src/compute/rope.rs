//! Angles of the rotary embedding (Su et al., 2021) of the tokens of a step.
//!
//! They are computed for each step anew: 64 sines and cosines a token cost microseconds, a table over 128K positions costs
//! 64 MiB and a second of every forming.

use crate::attention::Span;

/// Cosines and sines of the tokens of a step, `[token][head_dim / 2]`.
pub(crate) struct Rope {
    /// Radians a token.
    frequencies: Vec<f64>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Room for `tokens` tokens.
    pub(crate) fn new(frequencies: Vec<f64>, tokens: usize) -> Self {
        let len = tokens * frequencies.len();
        Self {
            frequencies,
            cos: vec![0.0; len],
            sin: vec![0.0; len],
        }
    }

    /// Bytes for `tokens` tokens and heads of `head_dim`.
    pub(crate) fn bytes(head_dim: usize, tokens: usize) -> usize {
        tokens.saturating_mul(head_dim).saturating_mul(size_of::<f32>())
    }

    /// What the tables of this value take.
    #[cfg(test)]
    pub(crate) fn allocated(&self) -> usize {
        (self.cos.len() + self.sin.len()) * size_of::<f32>()
    }

    /// The angles of all tokens of `spans`: in f64, rounded once.
    pub(crate) fn turn(&mut self, spans: &[Span]) {
        let half = self.frequencies.len();
        for span in spans {
            for i in 0..span.len {
                let at = (span.first + i) * half;
                let position = (span.start + i) as f64;
                let places = self.cos[at..].iter_mut().zip(&mut self.sin[at..]);
                for ((cos, sin), frequency) in places.zip(&self.frequencies) {
                    let angle = position * frequency;
                    (*cos, *sin) = (angle.cos() as f32, angle.sin() as f32);
                }
            }
        }
    }

    /// Cosines and sines of one token of the step.
    pub(crate) fn at(&self, token: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let range = token * half..(token + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// `theta^(-2i/d)` for `i` in `0 .. d/2` (Su et al., 2021, §3.2.2).
pub(crate) fn frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2)
        .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64))
        .collect()
}
