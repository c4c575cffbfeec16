//! Embeddings: the hidden states of a text's positions become one vector of length 1.
//!
//! States are summed exactly, so that the sum depends neither on how a prompt is cut into rows nor on who adds: every value
//! is first rounded to a multiple of [`UNIT`], and an f64 holds sums of such values below 2^29 without rounding. States
//! behind the final norm are far smaller: 131,072 positions of up to 4,096 each fit.

/// What values are rounded to before they are summed: 2^-24. Bf16 values of 2^-17 and more are such multiples already.
pub const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Which states of a text make its embedding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token, the only one that has seen all others.
    #[default]
    Last,
    /// The mean over all tokens.
    Mean,
}

/// Why there is no embedding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolingError {
    /// Some value is no number, or all are 0.
    #[error("the hidden states are not finite, or zero; the checkpoint is damaged or its scales overflow")]
    NotFinite,
    /// Rows do not follow each other, or have other widths.
    #[error("hidden states of position {got} came where those of position {expected} were due")]
    OutOfOrder {
        /// Where the row begins.
        got: u32,
        /// Where it should.
        expected: u32,
    },
}

/// Add a state to a sum of states.
pub fn add(sum: &mut [f64], state: impl IntoIterator<Item = f32>) {
    for (sum, value) in sum.iter_mut().zip(state) {
        *sum += (f64::from(value) / UNIT).round_ties_even() * UNIT;
    }
}

/// An embedding under way: rows of hidden states come in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pooled {
    pooling: Pooling,
    values: Vec<f64>,
    /// Positions before this one are in the sum.
    until: u32,
}

impl Pooled {
    /// Nothing has come.
    #[must_use]
    pub fn new(pooling: Pooling) -> Self {
        Self {
            pooling,
            values: Vec::new(),
            until: 0,
        }
    }

    /// The answer of the row of positions `start .. end`: the last one's state, or the sum of all. A row that begins at 0 begins
    /// again, after a preemption or a loss.
    ///
    /// # Errors
    /// [`PoolingError::OutOfOrder`].
    pub fn take(&mut self, start: u32, end: u32, values: Vec<f64>) -> Result<(), PoolingError> {
        if self.pooling == Pooling::Last || start == 0 {
            self.values = values;
        } else if start == self.until && values.len() == self.values.len() {
            self.values
                .iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += value);
        } else {
            return Err(PoolingError::OutOfOrder {
                got: start,
                expected: self.until,
            });
        }
        self.until = end;
        Ok(())
    }

    /// The embedding, of length 1. The mean needs no division: it points where the sum does.
    ///
    /// # Errors
    /// [`PoolingError::NotFinite`].
    #[expect(clippy::cast_possible_truncation, reason = "rounded to what an answer holds")]
    pub fn vector(&self) -> Result<Vec<f32>, PoolingError> {
        let length = self.values.iter().map(|value| value * value).sum::<f64>().sqrt();
        if !(length > 0.0 && length.is_finite()) {
            return Err(PoolingError::NotFinite);
        }
        Ok(self.values.iter().map(|value| (value / length) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(count: u32) -> Vec<Vec<f32>> {
        let value = |seed: u32| {
            let bits = seed.wrapping_mul(2_654_435_761) >> 8;
            (bits as f32 / (1 << 24) as f32 - 0.5) * [1e-6, 1.0, 700.0][seed as usize % 3]
        };
        (0..count)
            .map(|at| (0..5).map(|i| value(at * 5 + i)).collect())
            .collect()
    }

    fn pooled(pooling: Pooling, states: &[Vec<f32>], chunk: usize) -> Vec<f32> {
        let mut pooled = Pooled::new(pooling);
        let mut start = 0;
        for rows in states.chunks(chunk) {
            let mut sum = vec![0.0; 5];
            match pooling {
                Pooling::Last => add(&mut sum, rows.last().unwrap().clone()),
                Pooling::Mean => rows.iter().for_each(|row| add(&mut sum, row.clone())),
            }
            let end = start + u32::try_from(rows.len()).unwrap();
            pooled.take(start, end, sum).unwrap();
            start = end;
        }
        pooled.vector().unwrap()
    }

    #[test]
    fn the_cut_of_a_prompt_changes_no_bit() {
        let states = states(1000);
        for pooling in [Pooling::Last, Pooling::Mean] {
            let whole = pooled(pooling, &states, 1000);
            for chunk in [1, 7, 256, 999] {
                assert_eq!(pooled(pooling, &states, chunk), whole);
            }
            let length: f64 = whole.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            assert!((length - 1.0).abs() < 1e-6, "{length}");
        }
    }

    #[test]
    fn a_row_that_begins_again_replaces_what_came_and_gaps_are_noticed() {
        let mut sum = Pooled::new(Pooling::Mean);
        sum.take(0, 3, vec![9.0, 9.0]).unwrap();
        sum.take(0, 2, vec![3.0, 0.0]).unwrap();
        sum.take(2, 4, vec![0.0, 4.0]).unwrap();
        assert_eq!(sum.vector().unwrap(), [0.6, 0.8]);
        let gap = sum.take(5, 6, vec![1.0, 1.0]).unwrap_err();
        assert_eq!(gap, PoolingError::OutOfOrder { got: 5, expected: 4 });
        assert!(sum.take(4, 5, vec![1.0]).is_err());
    }

    #[test]
    fn what_is_no_number_is_no_embedding() {
        for values in [
            vec![f64::NAN, 1.0],
            vec![f64::INFINITY, 1.0],
            vec![0.0, 0.0],
            vec![],
        ] {
            let mut last = Pooled::new(Pooling::Last);
            last.take(0, 1, values).unwrap();
            assert_eq!(last.vector(), Err(PoolingError::NotFinite));
        }
    }
}
