//! Candidates from logits.

use cudarc::driver::{CudaSlice, PushKernelArg};

use super::{OpError, Ops, at_least, shape, word};
use crate::source::Source;

/// Candidates of a row, as the engine counts them.
pub const TOP: usize = 64;
/// Tokens of a tile of log-sum-exps.
pub const TILE: usize = 128;
/// Tokens that a block looks through.
pub const SEGMENT: usize = 2048;

impl Ops {
    /// The best [`TOP`] tokens of each row of `logits[row][vocab]`, best first, and how many there are. `first` is the
    /// token of the first logit; `keys` is workspace of `rows × segments × TOP` numbers.
    ///
    /// # Errors
    /// [`OpError`].
    #[allow(
        clippy::too_many_arguments,
        reason = "what is read, the workspace, and three results"
    )]
    pub fn top(
        &mut self,
        logits: &CudaSlice<f32>,
        (rows, vocab, first): (usize, usize, u32),
        keys: &mut CudaSlice<u64>,
        tokens: &mut CudaSlice<u32>,
        values: &mut CudaSlice<f32>,
        counts: &mut CudaSlice<u32>,
    ) -> Result<(), OpError> {
        let segments = vocab.div_ceil(SEGMENT);
        at_least("the logits", logits, rows * vocab)?;
        at_least("the workspace", keys, rows * segments * TOP)?;
        at_least("the tokens", tokens, rows * TOP)?;
        at_least("their logits", values, rows * TOP)?;
        at_least("the counts", counts, rows)?;
        let (rows, vocab, segments) = (
            word("rows", rows)?,
            word("vocab", vocab)?,
            word("segments", segments)?,
        );
        let function = self.function(Source::Candidates, "top_of_segment")?;
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(logits).arg(&mut *keys).arg(&vocab).arg(&first);
        // SAFETY: the arguments are the kernel's, and the buffers hold what their shapes need.
        unsafe { launch.launch(shape((segments, rows, 1), 256, 0)) }?;
        let function = self.function(Source::Candidates, "top_of_row")?;
        let mut launch = self.stream.launch_builder(&function);
        launch
            .arg(&*keys)
            .arg(logits)
            .arg(tokens)
            .arg(values)
            .arg(counts)
            .arg(&segments)
            .arg(&vocab)
            .arg(&first);
        // SAFETY: as above.
        unsafe { launch.launch(shape((rows, 1, 1), 256, 0)) }?;
        Ok(())
    }

    /// `ln Σ exp(logit / temperature)` of each tile; temperature 0 leaves the logits as they are. `lse[row][tile]`.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn tile_lse(
        &mut self,
        logits: &CudaSlice<f32>,
        (rows, vocab): (usize, usize),
        temperatures: &CudaSlice<f32>,
        lse: &mut CudaSlice<f32>,
    ) -> Result<(), OpError> {
        let tiles = vocab.div_ceil(TILE);
        at_least("the logits", logits, rows * vocab)?;
        at_least("the temperatures", temperatures, rows)?;
        at_least("the results", lse, rows * tiles)?;
        let function = self.function(Source::Candidates, "tile_lse")?;
        let (rows, vocab, tiles) = (word("rows", rows)?, word("vocab", vocab)?, word("tiles", tiles)?);
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(logits).arg(temperatures).arg(lse).arg(&vocab);
        // SAFETY: as above.
        unsafe { launch.launch(shape((tiles, rows, 1), TILE as u32, 0)) }?;
        Ok(())
    }

    /// The best token of each segment under Gumbel noise, as a number whose order is that of (value, lower token):
    /// the larger number wins. 0 where the temperature is 0. `best[row][segment]`.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn best_perturbed(
        &mut self,
        logits: &CudaSlice<f32>,
        (rows, vocab, first): (usize, usize, u32),
        (temperatures, seeds, positions): (&CudaSlice<f32>, &CudaSlice<u64>, &CudaSlice<u32>),
        best: &mut CudaSlice<u64>,
    ) -> Result<(), OpError> {
        let segments = vocab.div_ceil(SEGMENT);
        at_least("the logits", logits, rows * vocab)?;
        at_least("the temperatures", temperatures, rows)?;
        at_least("the seeds", seeds, rows)?;
        at_least("the positions", positions, rows)?;
        at_least("the results", best, rows * segments)?;
        let function = self.function(Source::Candidates, "best_perturbed")?;
        let (rows, vocab, segments) = (
            word("rows", rows)?,
            word("vocab", vocab)?,
            word("segments", segments)?,
        );
        let mut launch = self.stream.launch_builder(&function);
        launch
            .arg(logits)
            .arg(temperatures)
            .arg(seeds)
            .arg(positions)
            .arg(best)
            .arg(&vocab)
            .arg(&first);
        // SAFETY: as above.
        unsafe { launch.launch(shape((segments, rows, 1), 256, 0)) }?;
        Ok(())
    }
}
