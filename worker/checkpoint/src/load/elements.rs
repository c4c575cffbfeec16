//! The elements of rows as a sink takes them. Values that are not numbers are refused: one would turn every answer into
//! nonsense.

use super::{Rows, SinkError};
use crate::dtype::{Dtype, extend_bf16, extend_f32};

#[derive(Debug, thiserror::Error)]
#[error("{0} holds values that are not numbers; the file is damaged, download it again")]
struct NotANumber(String);

impl<'a> Rows<'a> {
    /// Little-endian bf16, row by row: as they are, or rounded into `converted` where the checkpoint is wider.
    ///
    /// # Errors
    /// One is not a number.
    pub fn bf16<'c>(&self, converted: &'c mut Vec<u8>) -> Result<&'c [u8], SinkError>
    where
        'a: 'c,
    {
        let dtype = self.piece.tensor.dtype;
        let bytes = if dtype == Dtype::BF16 {
            self.bytes
        } else {
            let mut values = Vec::with_capacity(self.bytes.len() / 2);
            extend_f32(dtype, self.bytes, &mut values);
            converted.clear();
            extend_bf16(&values, converted);
            converted
        };
        let is_nan = |value: [u8; 2]| u16::from_le_bytes(value) & 0x7fff > 0x7f80;
        self.numbers(bytes, any(bytes.as_chunks().0, is_nan))
    }

    /// The values, row by row.
    ///
    /// # Errors
    /// One is not a number.
    pub fn f32(&self) -> Result<Vec<f32>, SinkError> {
        let mut values = Vec::new();
        extend_f32(self.piece.tensor.dtype, self.bytes, &mut values);
        let any_nan = any(&values, f32::is_nan);
        self.numbers(values, any_nan)
    }

    /// E4M3 codes, row by row.
    ///
    /// # Errors
    /// One is not a number.
    pub fn e4m3(&self) -> Result<&'a [u8], SinkError> {
        self.numbers(self.bytes, any(self.bytes, |code| code & 0x7f == 0x7f))
    }

    fn numbers<T>(&self, values: T, any_nan: bool) -> Result<T, SinkError> {
        if any_nan {
            return Err(NotANumber(self.piece.tensor.name.clone()).into());
        }
        Ok(values)
    }
}

/// Whether `test` holds for any value. Looks at all of them, which vectorises.
fn any<T: Copy>(values: &[T], test: impl Fn(T) -> bool) -> bool {
    values.iter().fold(false, |found, value| found | test(*value))
}
