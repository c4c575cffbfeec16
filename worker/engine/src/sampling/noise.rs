//! Gumbel noise keyed by (seed, position, token id).
//!
//! `argmax(logit / T + g)` over independent Gumbel noise `g` is an exact sample of `softmax(logit / T)` (the Gumbel-max
//! trick, Gumbel 1954). The noise is a pure function of its key, so every rank draws its own part of it, and the text of
//! a request depends neither on sharding nor on other sequences of the batch nor on where an interrupted stream goes on.
//!
//! The generator is counter based: two rounds of the finaliser of SplitMix64 (Steele, Lea and Flood 2014).

use llamero_settings::hash::{GOLDEN, mix};

use super::rounded;

/// No noise is larger: the value of the largest 24-bit uniform. A token whose scaled logit plus this stays below the
/// best perturbed value so far cannot win, so its noise need not be computed.
pub const MAX_GUMBEL: f32 = 17.328_68;

/// The noise of one sampled position, over all token ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    key: u64,
}

impl Noise {
    /// The noise for the token that will stand at the absolute position `position` (0 is the first token of the
    /// prompt), that is, one past the position whose logits are sampled.
    #[must_use]
    pub fn new(seed: u64, position: u32) -> Self {
        let key = mix(mix(seed.wrapping_add(GOLDEN)) ^ u64::from(position).wrapping_mul(GOLDEN));
        Self { key }
    }

    /// 32 uniform bits for a token.
    #[inline]
    #[must_use]
    pub fn bits(self, token: u32) -> u32 {
        let counter = (u64::from(token) + 1).wrapping_mul(GOLDEN);
        (mix(self.key.wrapping_add(counter)) >> 32) as u32
    }

    /// Gumbel noise for a token.
    #[inline]
    #[must_use]
    pub fn gumbel(self, token: u32) -> f32 {
        gumbel_of_bits(self.bits(token))
    }

    /// `logit / temperature + g`, the value whose largest wins. `temperature` must be above 0.
    #[inline]
    #[must_use]
    pub fn perturb(self, token: u32, logit: f32, temperature: f32) -> f32 {
        scale(logit, temperature) + self.gumbel(token)
    }
}

/// `logit / temperature`, or the logit itself when greedy (`temperature` 0). Ranks and leader must round alike, so
/// this is the one place that defines it: a division in f32, not a multiplication by the reciprocal.
#[inline]
#[must_use]
pub fn scale(logit: f32, temperature: f32) -> f32 {
    if temperature > 0.0 {
        logit / temperature
    } else {
        logit
    }
}

/// `-ln(-ln u)` with `u = (bits >> 8 + ½) / 2²⁴`, in f64, then rounded to f32. Grows with `bits`; never infinite.
#[inline]
#[must_use]
pub fn gumbel_of_bits(bits: u32) -> f32 {
    let uniform = (f64::from(bits >> 8) + 0.5) / f64::from(1 << 24);
    rounded(-(-uniform.ln()).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_finite_and_reached() {
        assert_eq!(gumbel_of_bits(u32::MAX), MAX_GUMBEL);
        assert!(gumbel_of_bits(0) > -2.9 && gumbel_of_bits(0) < -2.8);
        assert!(gumbel_of_bits(1 << 8) > gumbel_of_bits(0));
    }

    #[test]
    fn moments_are_those_of_a_gumbel_distribution() {
        let draws = 200_000_u32;
        let noise: Vec<f64> = (0..draws)
            .map(|i| f64::from(Noise::new(7, i / 1000).gumbel(i % 1000)))
            .collect();
        let mean = noise.iter().sum::<f64>() / f64::from(draws);
        let variance = noise.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / f64::from(draws);
        // Euler's constant and π²/6; four standard errors wide.
        assert!((mean - 0.577_216).abs() < 0.0115, "{mean}");
        assert!((variance - 1.644_934).abs() < 0.05, "{variance}");
    }

    #[test]
    fn neighbouring_keys_are_unrelated() {
        let streams = [
            Noise::new(1, 5),
            Noise::new(1, 6),
            Noise::new(2, 5),
            Noise::new(6, 1),
        ];
        for (i, a) in streams.iter().enumerate() {
            for b in &streams[i + 1..] {
                let equal = (0..10_000)
                    .map(|id| (a.bits(id) ^ b.bits(id)).count_ones())
                    .sum::<u32>();
                let fraction = f64::from(equal) / 320_000.0;
                assert!((fraction - 0.5).abs() < 0.005, "{fraction}");
            }
        }
    }

    #[test]
    fn values_do_not_change_between_versions() {
        // A resumed stream may meet another build: the noise is part of the contract.
        let noise = Noise::new(42, 17);
        let bits: Vec<u32> = [0, 1, 49_151].iter().map(|&id| noise.bits(id)).collect();
        assert_eq!(bits, PINNED);
    }

    const PINNED: [u32; 3] = [891_537_601, 1_888_658_502, 1_003_351_959];
}
