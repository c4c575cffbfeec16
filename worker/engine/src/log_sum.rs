//! Sums of exponentials of any size, joined without rounding that depends on the machine.
//!
//! The usual pair of (largest, sum of `e^(x - largest)`) needs an exponential to join two, whose last bits differ
//! between mathematical libraries. Here references are multiples of [`GRID`], so a join takes one addition, seldom also
//! a multiplication by a constant, and gives the same bits on every machine.

use serde::{Deserialize, Serialize};

/// `sum · e^reference`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LogSum {
    /// A multiple of [`GRID`], or -∞ for an empty sum.
    reference: f32,
    /// NaN when any term was NaN or infinite.
    sum: f64,
}

/// References are multiples of this: a power of two, so that all f32 are divided exactly.
const GRID: f32 = 64.0;
/// `e^-GRID`.
const NEXT: f64 = 1.603_810_890_548_638e-28;

impl LogSum {
    /// `e^log`; -∞ gives the empty sum, NaN and +∞ a sum that stays unusable.
    #[must_use]
    pub fn of(log: f32) -> Self {
        if log.is_nan() || log == f32::INFINITY {
            return Self {
                reference: 0.0,
                sum: f64::NAN,
            };
        }
        let reference = (log / GRID).ceil() * GRID;
        let sum = if reference == f32::NEG_INFINITY {
            0.0
        } else {
            (f64::from(log) - f64::from(reference)).exp()
        };
        Self { reference, sum }
    }

    /// The sum of both. Exchanging them changes nothing; joining three in another order may change the last bits, so
    /// many are joined in a fixed tree.
    #[inline]
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let (high, low) = if self.reference >= other.reference {
            (self, other)
        } else {
            (other, self)
        };
        let apart = high.reference - low.reference;
        let power = if apart == 0.0 {
            1.0
        } else if apart == GRID {
            NEXT
        } else {
            // Two steps away: 2³² terms of at most 1 come to e^(22 - 128), less than half a unit in the last place of
            // a term of at least e^-64.
            0.0
        };
        // Always multiplied, so that NaN is not lost.
        Self {
            reference: high.reference,
            sum: high.sum + low.sum * power,
        }
    }

    /// The natural logarithm: -∞ for the empty sum, NaN for an unusable one.
    #[must_use]
    pub fn ln(self) -> f64 {
        f64::from(self.reference) + self.sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(logs: &[f32]) -> f64 {
        let sums = logs.iter().map(|log| LogSum::of(*log));
        sums.reduce(LogSum::join).unwrap().ln()
    }

    #[test]
    fn is_the_logarithm_of_the_sum() {
        let logs = [3.25_f32, -1.5, 3.0, 2.999, -40.0, 0.0];
        let exact: f64 = logs.iter().map(|log| f64::from(*log).exp()).sum();
        assert!((joined(&logs) - exact.ln()).abs() < 1e-14);
        for log in [0.0_f32, -0.3, 88.2, -1e4, 12_345.678, 3e38, -3e38] {
            let exact = f64::from(log);
            let error = (joined(&[log]) - exact).abs();
            assert!(error <= 1e-15 * exact.abs().max(1.0), "{log}: {error}");
        }
    }

    #[test]
    fn spans_every_distance() {
        for apart in 0..300 {
            let far = joined(&[700.5, 700.5 - apart as f32]) - 700.5;
            let exact = f64::from(-apart).exp().ln_1p();
            assert!((far - exact).abs() < 1e-12, "{apart}: {far} {exact}");
        }
        assert_eq!(NEXT, f64::from(-GRID).exp());
        // Both ends of neighbouring steps.
        let neighbours = joined(&[0.001, -63.999, 0.0, -64.0]);
        let exact = [0.001_f32, -63.999, 0.0, -64.0].map(|log| f64::from(log).exp());
        assert!((neighbours - exact.iter().sum::<f64>().ln()).abs() < 1e-14);
        assert_eq!(joined(&[3e38, -3e38]), f64::from(3e38_f32));
    }

    #[test]
    fn masked_terms_add_nothing_and_broken_ones_stay() {
        let masked = f32::NEG_INFINITY;
        assert_eq!(joined(&[masked, masked]), f64::NEG_INFINITY);
        assert_eq!(joined(&[masked, 2.0, masked]), 2.0);
        for broken in [f32::NAN, f32::INFINITY] {
            for others in [[1.0, 500.0], [masked, masked], [-500.0, 2.0]] {
                assert!(joined(&[broken, others[0], others[1]]).is_nan());
                assert!(joined(&[others[0], others[1], broken]).is_nan());
            }
        }
    }
}
