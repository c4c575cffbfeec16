//! The head of a tied model.

use crate::checkpoint::Checkpoint;
use crate::error::LayoutError;
use crate::narrow::to_usize;
use crate::samples::samples;

/// Samples that are compared.
const SAMPLES: u64 = 64;

/// Refuse a checkpoint whose configuration says that the head is the embedding although it has another `head`. Two tables
/// of different content differ nearly everywhere, so samples are compared, not all of two tables of a gigabyte.
///
/// # Errors
/// They differ, or cannot be read.
pub(crate) fn check_own_head(
    checkpoint: &Checkpoint,
    head: &str,
    embedding: &str,
) -> Result<(), LayoutError> {
    let (Some(own), Some(table)) = (checkpoint.tensor(head), checkpoint.tensor(embedding)) else {
        return Ok(());
    };
    let differ = || LayoutError::OwnHead {
        head: head.to_owned(),
        embedding: embedding.to_owned(),
    };
    if own.dtype != table.dtype || own.shape != table.shape {
        return Err(differ());
    }
    let read = |name: &str, start: u64, buffer: &mut [u8]| {
        checkpoint
            .read_at(name, start, buffer)
            .map_err(|error| LayoutError::Unreadable(Box::new(error)))
    };
    for range in samples(head, own.bytes(), SAMPLES) {
        let mut buffers = [0, 1].map(|_| vec![0; to_usize(range.end - range.start)]);
        let [of_head, of_embedding] = &mut buffers;
        read(head, range.start, of_head)?;
        read(embedding, range.start, of_embedding)?;
        if of_head != of_embedding {
            return Err(differ());
        }
    }
    Ok(())
}
