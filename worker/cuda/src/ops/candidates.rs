//! Candidates from logits. Tokens go by their number among the rank's own.

use cudarc::driver::{CudaSlice, DevicePtr};

use super::launch::{Launch, Push as _};
use super::{OpError, Ops, at_least, shape, word};
use crate::source::Source;

/// Candidates of a row, as the engine counts them.
pub const TOP: usize = 64;
/// Tokens of a tile of log-sum-exps.
pub const TILE: usize = 128;
/// Tokens that a block looks through.
pub const SEGMENT: usize = 2048;
/// In place of a token where there is none.
pub const NOTHING: u32 = u32::MAX;
/// Words of a tile's mask.
const MASK_WORDS: usize = TILE / 32;
/// The kernels.
pub(super) const KERNELS: [&str; 7] = [
    "top_of_segment",
    "top_of_row",
    "tile_lse",
    "best_perturbed",
    "add_biases",
    "apply_masks",
    "pick",
];

impl Ops {
    /// The best [`TOP`] tokens of each row of `logits[row][vocab]`, best first: `top[row][TOP]`, the token in the low half
    /// ([`NOTHING`] where there are no more), the bits of its logit in the high half. `keys` is workspace of
    /// `rows × segments × TOP` numbers.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn top(
        &mut self,
        logits: &CudaSlice<f32>,
        (rows, vocab): (usize, usize),
        keys: &mut CudaSlice<u64>,
        top: &mut CudaSlice<u64>,
    ) -> Result<(), OpError> {
        let segments = vocab.div_ceil(SEGMENT);
        at_least("the logits", logits, rows * vocab)?;
        at_least("the workspace", keys, rows * segments * TOP)?;
        at_least("the candidates", top, rows * TOP)?;
        let (rows, vocab, segments) = (
            word("rows", rows)?,
            word("vocab", vocab)?,
            word("segments", segments)?,
        );
        let kernel = self.kernel(Source::Candidates, "top_of_segment")?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(logits).arg(&mut *keys).arg(&vocab);
        // SAFETY: the arguments are the kernel's, and the buffers hold what their shapes need.
        unsafe { launch.launch(shape((segments, rows, 1), 256, 0)) }?;
        let kernel = self.kernel(Source::Candidates, "top_of_row")?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&*keys).arg(logits).arg(top).arg(&segments).arg(&vocab);
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
        temperatures: &impl DevicePtr<f32>,
        lse: &mut CudaSlice<f32>,
    ) -> Result<(), OpError> {
        let tiles = vocab.div_ceil(TILE);
        at_least("the logits", logits, rows * vocab)?;
        at_least("the temperatures", temperatures, rows)?;
        at_least("the results", lse, rows * tiles)?;
        let kernel = self.kernel(Source::Candidates, "tile_lse")?;
        let (rows, vocab, tiles) = (word("rows", rows)?, word("vocab", vocab)?, word("tiles", tiles)?);
        let temperatures = self.address(temperatures);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(logits).arg(&temperatures).arg(lse).arg(&vocab);
        // SAFETY: as above.
        unsafe { launch.launch(shape((tiles, rows, 1), TILE as u32, 0)) }?;
        Ok(())
    }

    /// The best token of each segment under Gumbel noise: `best[row][segment]` of four words. The first two are a number
    /// whose order is that of (value, lower token), 0 where the temperature is 0; the token is the complement of the first;
    /// the third are the bits of its logit. `tiles` are the rank's tiles of the vocabulary.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn best_perturbed(
        &mut self,
        logits: &CudaSlice<f32>,
        (rows, vocab): (usize, usize),
        (temperatures, seeds, positions): (&impl DevicePtr<f32>, &impl DevicePtr<u64>, &impl DevicePtr<u32>),
        tiles: &CudaSlice<u32>,
        best: &mut CudaSlice<u32>,
    ) -> Result<(), OpError> {
        let segments = vocab.div_ceil(SEGMENT);
        at_least("the logits", logits, rows * vocab)?;
        at_least("the temperatures", temperatures, rows)?;
        at_least("the seeds", seeds, rows)?;
        at_least("the positions", positions, rows)?;
        at_least("the tiles", tiles, vocab.div_ceil(TILE))?;
        at_least("the results", best, 4 * rows * segments)?;
        let kernel = self.kernel(Source::Candidates, "best_perturbed")?;
        let (rows, vocab, segments) = (
            word("rows", rows)?,
            word("vocab", vocab)?,
            word("segments", segments)?,
        );
        let temperatures = self.address(temperatures);
        let (seeds, positions) = (self.address(seeds), self.address(positions));
        let mut launch = Launch::new(&kernel, &self.stream);
        launch
            .arg(logits)
            .arg(&temperatures)
            .arg(&seeds)
            .arg(&positions)
            .arg(tiles)
            .arg(best)
            .arg(&vocab);
        // SAFETY: as above.
        unsafe { launch.launch(shape((segments, rows, 1), 256, 0)) }?;
        Ok(())
    }

    /// Change logits: `count` entries of four words (row, token, bits of the bias, bits of the repetition penalty that comes before it
    /// or 0), each row and token once.
    ///
    /// # Errors
    /// [`OpError`]. Rows and tokens must be there, which the caller checks.
    pub fn add_biases(
        &mut self,
        logits: &mut CudaSlice<f32>,
        vocab: usize,
        entries: &CudaSlice<u32>,
        count: usize,
    ) -> Result<(), OpError> {
        at_least("the biases", entries, 4 * count)?;
        let kernel = self.kernel(Source::Candidates, "add_biases")?;
        let (count, vocab) = (word("biases", count)?, word("vocab", vocab)?);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(logits).arg(entries).arg(&count).arg(&vocab);
        // SAFETY: as above.
        unsafe { launch.launch(shape((count.div_ceil(256), 1, 1), 256, 0)) }?;
        Ok(())
    }

    /// Make what a mask does not allow -∞: `masks[i]`, of [`mask_words`] words, goes with row `rows[i]`.
    ///
    /// # Errors
    /// [`OpError`]. Rows must be there, which the caller checks.
    pub fn apply_masks(
        &mut self,
        logits: &mut CudaSlice<f32>,
        vocab: usize,
        (rows, masks): (&impl DevicePtr<u32>, &impl DevicePtr<u32>),
        count: usize,
    ) -> Result<(), OpError> {
        at_least("the masked rows", rows, count)?;
        at_least("the masks", masks, count * mask_words(vocab))?;
        let kernel = self.kernel(Source::Candidates, "apply_masks")?;
        let (rows, masks) = (self.address(rows), self.address(masks));
        let (count, vocab) = (word("masks", count)?, word("vocab", vocab)?);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(logits).arg(&rows).arg(&masks).arg(&vocab);
        // SAFETY: as above.
        unsafe { launch.launch(shape((vocab.div_ceil(256), count, 1), 256, 0)) }?;
        Ok(())
    }

    /// The logit of one token of each row, of at most 64; 0 for [`NOTHING`].
    ///
    /// # Errors
    /// [`OpError`]. Tokens must be there, which the caller checks.
    pub fn pick(
        &mut self,
        logits: &CudaSlice<f32>,
        (rows, vocab): (usize, usize),
        tokens: &impl DevicePtr<u32>,
        values: &mut CudaSlice<f32>,
    ) -> Result<(), OpError> {
        at_least("the logits", logits, rows * vocab)?;
        at_least("the tokens", tokens, rows)?;
        at_least("the picked logits", values, rows)?;
        if rows > 64 {
            return Err(OpError::Shape(format!(
                "{rows} rows; logits of at most 64 are picked"
            )));
        }
        let kernel = self.kernel(Source::Candidates, "pick")?;
        let tokens = self.address(tokens);
        let (rows, vocab) = (word("rows", rows)?, word("vocab", vocab)?);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(logits).arg(&tokens).arg(values).arg(&rows).arg(&vocab);
        // SAFETY: as above.
        unsafe { launch.launch(shape((1, 1, 1), 64, 0)) }?;
        Ok(())
    }
}

/// Words of a row's mask over the rank's `vocab` tokens.
#[must_use]
pub fn mask_words(vocab: usize) -> usize {
    vocab.div_ceil(TILE) * MASK_WORDS
}
